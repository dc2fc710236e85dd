"""Everything before the first step: the base, its tokenizer, the data, and what preflight says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitral.errors import DataError
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import admitted
from vitral.hub.data_sets import fetch_data_set
from vitral.loading import tokenizer_of
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune import distributed
from vitral.tune.data.load import DataSet, Item, load_data
from vitral.tune.data.preflight import Preflight, preflight
from vitral.tune.estimate import Estimate, estimate
from vitral.tune.forgetting import REPLAYED_TOKENS
from vitral.tune.losses import Loss
from vitral.tune.losses.distil import Distil
from vitral.tune.losses.dpo import Dpo
from vitral.tune.losses.grpo import Grpo
from vitral.tune.losses.kto import Kto
from vitral.tune.losses.orpo import Orpo
from vitral.tune.losses.ppo import Ppo
from vitral.tune.losses.reward import RewardRanking
from vitral.tune.losses.sft import Sft
from vitral.tune.recipe import MethodPart, Recipe
from vitral.tune.source import Order, check_shape

__all__ = ["Prepared", "loss_of", "prepare"]

_PRODUCT = re.compile(r"blocks\.\d+\.(attn|mlp)\..+\.weight")


@dataclass(frozen=True)
class Prepared:
    """What a run starts from. `estimate` is the closed form; `n_steps` how many steps there will be."""

    recipe: Recipe
    base: Checkpoint
    tokenizer: Tokenizer
    train: DataSet
    test: DataSet | None
    preflight: Preflight
    loss: Loss
    n_steps: int
    estimate: Estimate


def prepare(recipe: Recipe) -> Prepared:
    """Read and look at everything a recipe names. Data that forbids the run is reported, not raised: see `refuse`."""
    base = open_checkpoint(admitted(recipe.model.base))
    tokenizer = tokenizer_of(base)
    data = recipe.data
    if data.context > base.spec.max_context:
        raise DataError(
            f"data.context is {data.context}; the model was made for at most {base.spec.max_context} tokens"
        )
    if recipe.method.tune == "lora" and not recipe.model.adapter:
        recipe.adapter_plan.matched([name.removesuffix(".weight") for name in base.weights if _PRODUCT.fullmatch(name)])
    chat = {"auto": None, "chat": True, "text": False}[data.form]

    def load(paths: Sequence[str]) -> DataSet:
        places = [fetch_data_set(path) if path.startswith("hf:") else Path(path) for path in paths]
        return load_data(places, tokenizer, data.context, turns=data.turns, too_long=data.too_long, chat=chat)

    train = load(data.train)
    test = load(data.test) if data.test else None
    if data.hold_out and train.items and not train.problems:
        test = _held_out(train, data.hold_out, recipe.run.seed)
    found = preflight(train, test, licence=data.licence)
    loss = loss_of(recipe.method)
    if train.items:
        check_shape(recipe.method.loss, [*train.items, *(test.items if test is not None else [])])
    steps = recipe.run.steps or max(
        1, round(recipe.run.epochs * Order(len(train.items), recipe.run.batch, 0).steps_per_epoch)
    )
    return Prepared(
        recipe, base, tokenizer, train, test, found, loss, steps, _estimate(recipe, base, train, steps, loss)
    )


def loss_of(method: MethodPart) -> Loss:
    """The loss that a recipe names."""
    match method.loss:
        case "sft" | "rejection":
            return Sft()
        case "dpo":
            return Dpo(method.beta)
        case "ipo":
            return Dpo(method.beta, "ipo")
        case "orpo":
            return Orpo(method.beta)
        case "kto":
            return Kto(method.beta)
        case "grpo":
            return Grpo(beta=method.beta)
        case "ppo":
            return Ppo()
        case "reward":
            return RewardRanking()
        case "distil":
            return Distil(method.temperature)


def _held_out(train: DataSet, share: float, seed: int) -> DataSet:
    """Take a share of the items out of the training set, at least one, and never all."""
    n = len(train.items)
    if n < 2:
        raise DataError(f"data.hold_out takes a share of the items, and there is {n}; give data.test instead")
    count = min(max(1, round(share * n)), n - 1)
    chosen = set(np.random.Generator(np.random.Philox(key=[seed, 1 << 32])).permutation(n)[:count].tolist())
    test = DataSet(list(train.files), train.shape, [item for i, item in enumerate(train.items) if i in chosen])
    train.items = [item for i, item in enumerate(train.items) if i not in chosen]
    return test


def _estimate(recipe: Recipe, base: Checkpoint, train: DataSet, steps: int, loss: Loss) -> Estimate:
    items: list[Item] = train.items
    tokens = sum(item.n_tokens for item in items)
    supervised = sum(row.n_supervised for item in items for row in item.rows)
    share = supervised / tokens if tokens else 1.0
    widest = max((item.n_tokens for item in items), default=1)
    by_size = sorted((item.n_tokens for item in items), reverse=True)[: recipe.run.batch]
    replayed = round(recipe.run.replay * len(by_size)) * REPLAYED_TOKENS  # in each step
    piece = max(widest, min(recipe.run.piece_tokens, sum(by_size) + replayed))
    full = recipe.method.tune == "full"
    return estimate(
        base.spec,
        None if full else recipe.adapter_plan,
        piece_tokens=piece,
        piece_supervised=max(1, round(piece * share)),
        run_tokens=round((tokens / max(len(items), 1) * recipe.run.batch + replayed) * steps),
        supervised_share=share,
        file_bytes=base.weights.n_bytes(),
        recompute=recipe.run.recompute,
        shards=distributed.world_size() if recipe.run.shard else 1,
        references=int(
            (loss.needs_reference or recipe.method.loss == "ppo") and (full or recipe.method.loss == "distil")
        ),
    )
