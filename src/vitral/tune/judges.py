"""Who rewards sampled answers: a rule that verifies them, or a reward model that was trained from preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vitral.errors import TuneError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.safetensors import ToWrite, read_safetensors, write_safetensors
from vitral.hub import admitted
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.adapter_files import load_adapter
from vitral.tune.batch import Batch, Row
from vitral.tune.data.examples import Task
from vitral.tune.forward import load_model
from vitral.tune.policy import Policy, Precision
from vitral.tune.record import ADAPTER, MODEL, read_record
from vitral.tune.sampled import Sampled

__all__ = ["HEAD", "Judge", "RewardModel", "Verifier", "new_head", "save_head"]

HEAD = "score.safetensors"


class Judge(Protocol):
    """Rewards (B,) of answers to tasks, one for each in order."""

    def __call__(self, answers: Sequence[Sampled], tasks: Sequence[Task]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Verifier:
    """A rule over texts: `rule(answer, expected)`."""

    rule: Callable[[str, str], float]
    tokenizer: Tokenizer

    def __call__(self, answers: Sequence[Sampled], tasks: Sequence[Task]) -> Tensor:
        texts = [self.tokenizer.decode(s.answer, skip_special=True) for s in answers]
        return torch.tensor([self.rule(text, task.expected) for text, task in zip(texts, tasks, strict=True)])


class RewardModel:
    """The finished run of a reward model; its score of the last token is the reward."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, precision: Precision = "float32") -> None:
        record = read_record(folder)
        if record["recipe"]["method"]["loss"] != "reward" or not record.get("finished"):
            raise TuneError(f"{folder} is no finished run of the loss reward; method.reward_model wants one")
        if record["tokenizer_digest"] != tokenizer.digest:
            raise TuneError(
                f"{folder} scores the tokens of another tokenizer; train the reward model from the same family"
            )
        if (folder / MODEL).exists():
            model = load_model(folder / MODEL)
        else:
            base = open_checkpoint(admitted(record["base"]))
            model = load_model(base)
            load_adapter(model, folder / ADAPTER, base.weights.digest())
        head = new_head(model.spec.dim)
        place = folder / (MODEL if (folder / MODEL).exists() else ADAPTER) / HEAD
        head.weight.data = torch.tensor(read_safetensors(place)["score.weight"].dequantize())
        self._policy = Policy(model.requires_grad_(False).eval(), precision, head.requires_grad_(False))

    def __call__(self, answers: Sequence[Sampled], tasks: Sequence[Task]) -> Tensor:
        scores: list[Tensor] = []
        for s in answers:
            row = Row((*s.prompt, *s.answer), (False,) * len(s.prompt) + (True,) * len(s.answer))
            with torch.no_grad():
                scores.append(self._policy.last_scores(Batch.of([row])))
        return torch.cat(scores) if scores else torch.zeros(0)


def new_head(dim: int) -> nn.Linear:
    """A head that scores every token 0 until it is trained."""
    head = nn.Linear(dim, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def save_head(head: nn.Module, folder: Path) -> Path:
    """Write a head beside its model; Transformers calls this tensor `score.weight` too."""
    [weight] = head.parameters()
    array = weight.detach().float().numpy()
    todo: list[ToWrite] = [("score.weight", "F32", array.shape, lambda: array.view("uint8"))]
    staging = folder / ".score"
    staging.mkdir(exist_ok=True)
    [file] = write_safetensors(staging, todo, 1 << 62)
    file.replace(folder / HEAD)
    staging.rmdir()
    return folder / HEAD
