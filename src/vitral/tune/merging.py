"""Several models of one architecture made into one, tensor by tensor; adapters added like vectors.

Linear: model soups, arXiv 2203.05482. SLERP: Shoemake 1985, over whole tensors. TIES: arXiv 2306.01708.
DARE: arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vitral.errors import AdapterMismatch, TuneError
from vitral.formats.canonical import Checkpoint
from vitral.formats.weights import Weights
from vitral.model.spec import ModelSpec
from vitral.tune.adapter_files import load_adapter
from vitral.tune.adapters import Lora, adapters_of
from vitral.tune.export import computed
from vitral.tune.forward import Transformer
from vitral.tune.lora_plan import LoraPlan

__all__ = ["MergePlan", "add_adapters", "merge_models", "merge_tensors"]

MergeMethod = Literal["linear", "slerp", "ties", "dare"]


@dataclass(frozen=True)
class MergePlan:
    """How models are merged. `weights` count one for each; for slerp they say how far from the first to the second.

    density: the share of each model's changes that ties and dare keep. seed: of the changes that dare drops.
    """

    method: MergeMethod = "linear"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("linear", "slerp", "ties", "dare"):
            raise TuneError(f"method is {self.method!r}; allowed: linear, slerp, ties, dare")
        if not 0 < self.density <= 1:
            raise TuneError(f"density is {self.density}; allowed: above 0, at most 1")


def merge_models(models: Sequence[Checkpoint], plan: MergePlan, base: Checkpoint | None = None) -> Checkpoint:
    """The merged model, read tensor by tensor when it is written. Tokenizer and metadata are the first one's.

    Raises TuneError for models that differ in architecture, or a base that is missing (ties, dare) or idle.
    """
    if len(models) < 2 or (plan.method == "slerp" and len(models) != 2):
        raise TuneError(
            f"{plan.method} merges {'exactly two' if plan.method == 'slerp' else 'two or more'} models; {len(models)} given"
        )
    if (base is not None) != (plan.method in ("ties", "dare")):
        raise TuneError(f"a base belongs to ties and dare, which merge what changed since; the method is {plan.method}")
    weights = plan.weights or (1.0,) * len(models) if plan.method != "slerp" else plan.weights or (0.5, 0.5)
    if len(weights) != len(models) or (plan.method in ("linear", "slerp", "ties") and sum(weights) <= 0):
        raise TuneError(f"{len(weights)} weights {weights} for {len(models)} models; one each, with a sum above 0")
    for other in [*models[1:], *([base] if base is not None else [])]:
        if other.spec != models[0].spec:
            raise TuneError(f"{other.path} has another architecture than {models[0].path}; only equal ones are merged")

    def merged(name: str) -> Tensor:
        values = [torch.tensor(model.weights[name].dequantize()) for model in models]
        start = torch.tensor(base.weights[name].dequantize()) if base is not None else None
        return merge_tensors(name, values, replace(plan, weights=weights), start)

    first = models[0]
    tensors = {name: computed(name, partial(merged, name), first.weights[name].shape) for name in first.weights}
    return replace(first, weights=Weights(first.spec, tensors))


def merge_tensors(name: str, values: Sequence[Tensor], plan: MergePlan, base: Tensor | None = None) -> Tensor:
    """One tensor of the merged model; `plan.weights` has one number for each value.

    >>> plan = MergePlan("ties", (1.0, 1.0), density=0.5)
    >>> merge_tensors("t", [torch.tensor([4.0, 1.0]), torch.tensor([-1.0, 3.0])], plan, torch.zeros(2)).tolist()
    [4.0, 3.0]
    """
    shares = torch.tensor(plan.weights)
    if plan.method == "linear":
        return (torch.stack(list(values)) * _column(shares / shares.sum(), values[0])).sum(0)
    if plan.method == "slerp":
        return _slerp(values[0], values[1], float(shares[1] / shares.sum()))
    assert base is not None, "checked by merge_models"
    changes = torch.stack([value - base for value in values])
    if plan.method == "ties":
        return base + _ties(changes, shares, plan.density)
    generator = torch.Generator().manual_seed(plan.seed + sum(name.encode()))
    kept = torch.rand(changes.shape, generator=generator) < plan.density
    return base + (changes * kept / plan.density * _column(shares, values[0])).sum(0)


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Along the great circle between directions; straight where they are (nearly) parallel."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if float(torch.sin(angle)) < 1e-4:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def _ties(changes: Tensor, shares: Tensor, density: float) -> Tensor:
    """Keep the largest changes, elect a sign for each number, average those that agree with it."""
    flat = changes.flatten(1)
    keep = max(1, round(density * flat.shape[1]))
    least = flat.abs().kthvalue(flat.shape[1] - keep + 1, dim=1).values
    kept = changes * (changes.abs() >= _column(least, changes[0]))
    weighted = kept * _column(shares, changes[0])
    agree = (torch.sign(weighted) == torch.sign(weighted.sum(0))) & (kept != 0)
    total = (agree * _column(shares.abs(), changes[0])).sum(0)
    return (weighted * agree).sum(0) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * like.ndim)


def add_adapters(
    spec: ModelSpec, adapters: Sequence[tuple[Path, float]], base_digest: str | None = None
) -> tuple[Transformer, LoraPlan]:
    """Adapters times numbers, summed exactly: the ranks add up, and a negative number takes away.

    Returns a model of the architecture that holds the sum (and no weights of its own), to be saved by
    `save_peft`. Raises AdapterMismatch for DoRA, whose magnitudes do not add.
    """
    found: list[tuple[Mapping[str, Lora], LoraPlan, float]] = []
    for folder, weight in adapters:
        shell = _shell(spec)
        plan = load_adapter(shell, folder, base_digest)
        if plan.kind == "dora":
            raise AdapterMismatch(f"{folder} is a DoRA adapter, whose magnitudes do not add; merge it into a model")
        found.append((adapters_of(shell), plan, weight))
    if not found:
        raise AdapterMismatch("there is no adapter to add")
    rank = sum(plan.rank for _, plan, _ in found)
    targets = tuple(dict.fromkeys(part for _, plan, _ in found for part in plan.targets))
    total = LoraPlan(rank, float(rank), targets=targets)
    shell = _shell(spec)
    for name, product in shell.linears():
        if not any(name in held for held, _, _ in found):
            continue
        out, inside = product.weight.shape
        a = [held[name].a if name in held else torch.zeros(plan.rank, inside) for held, plan, _ in found]
        b = [
            held[name].b * (plan.scale * weight) if name in held else torch.zeros(out, plan.rank)
            for held, plan, weight in found
        ]
        both = Lora(out, inside, total)
        both.a, both.b = nn.Parameter(torch.cat(a).detach()), nn.Parameter(torch.cat(b, dim=1).detach())
        product.adapter = both
    return shell, total


def _shell(spec: ModelSpec) -> Transformer:
    with torch.device("meta"):
        return Transformer(spec)
