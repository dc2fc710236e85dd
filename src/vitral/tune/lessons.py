"""What sampled answers and their rewards teach: one small class for each method that learns from its own answers.

A lesson turns the answers of a step into rows with columns, as its loss wants them. Several processes hold
parts of a step; what is counted or averaged over the step is summed over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vitral.tune import distributed
from vitral.tune.batch import Batch, Row
from vitral.tune.losses.grpo import group_advantages
from vitral.tune.losses.ppo import advantages, token_rewards
from vitral.tune.policy import Policy
from vitral.tune.sampled import Sampled

__all__ = ["BestOfGroup", "GroupLesson", "Lesson", "ValueLesson"]


class Lesson(Protocol):
    """Answers `found`, `group` to each question in a row, with their `rewards` (B,), become pieces."""

    def __call__(self, found: Sequence[Sampled], rewards: Tensor, piece_tokens: int) -> list[Batch]: ...


@dataclass(frozen=True, slots=True)
class GroupLesson:
    """GRPO: an answer's advantage is its reward compared with those of its group."""

    group: int

    def __call__(self, found: Sequence[Sampled], rewards: Tensor, piece_tokens: int) -> list[Batch]:
        [total] = distributed.summed_numbers(float(len(found)))
        advantage = group_advantages(rewards, self.group)
        return [
            _batch(found, piece, total, {"advantage": advantage[piece], "logprob": _then(found, piece)})
            for piece in _pieces(found, piece_tokens)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class BestOfGroup:
    """Rejection sampling: the best answer of each group is learnt from. A group of equals teaches nothing."""

    group: int

    def __call__(self, found: Sequence[Sampled], rewards: Tensor, piece_tokens: int) -> list[Batch]:
        groups = rewards.view(-1, self.group)
        best = [
            n * self.group + int(group.argmax()) for n, group in enumerate(groups) if float(group.max() - group.min())
        ]
        kept = [found[i] for i in best]
        [total] = distributed.summed_numbers(float(sum(len(s.answer) for s in kept)))
        return [_batch(kept, piece, total) for piece in _pieces(kept, piece_tokens)]


@dataclass(frozen=True, slots=True)
class ValueLesson:
    """PPO: the reward comes with the last token, a price for leaving the reference with each.

    The policy's head says what each token promises; advantages are generalised ones, whitened over the step.
    """

    policy: Policy
    reference: Policy
    beta: float

    def __call__(self, found: Sequence[Sampled], rewards: Tensor, piece_tokens: int) -> list[Batch]:
        self.policy.model.eval()
        plain: list[tuple[Batch, dict[str, Tensor]]] = []
        for piece in _pieces(found, piece_tokens):
            batch = _batch(found, piece)
            then = _then(found, piece)
            with torch.no_grad():
                value, before = self.policy.scores(batch), self.reference.logprobs(batch)
            parts: list[tuple[Tensor, Tensor]] = []
            for n, i in enumerate(piece):
                mine = batch.owners == n
                earned = token_rewards(float(rewards[i]), then[mine], before[mine], self.beta)
                parts.append(advantages(earned, value[mine]))
            advantage, returned = (torch.cat(column) for column in zip(*parts, strict=True))
            plain.append((batch, {"logprob": then, "value": value, "advantage": advantage, "return": returned}))
        return _whitened(plain)


def _whitened(plain: Sequence[tuple[Batch, dict[str, Tensor]]]) -> list[Batch]:
    """Advantages of mean 0 and variance 1 over all tokens of the step, in every process the same way."""
    each = torch.cat([columns["advantage"] for _, columns in plain]) if plain else torch.zeros(0)
    total, first = distributed.summed_numbers(float(len(each)), float(each.sum()))
    mean = first / max(total, 1.0)
    [second] = distributed.summed_numbers(float((each - mean).square().sum()))
    scale = (second / max(total - 1, 1.0)) ** 0.5 + 1e-8
    return [
        replace(b, total=total, columns=columns | {"advantage": (columns["advantage"] - mean) / scale})
        for b, columns in plain
    ]


def _pieces(found: Sequence[Sampled], piece_tokens: int) -> list[list[int]]:
    """Numbers of answers whose ids, with their prompts, fill at most `piece_tokens` (or are one answer)."""
    pieces: list[list[int]] = []
    room = 0
    for i, s in enumerate(found):
        size = len(s.prompt) + len(s.answer)
        if size > room:
            pieces.append([])
            room = piece_tokens
        pieces[-1].append(i)
        room -= size
    return pieces


def _batch(
    found: Sequence[Sampled],
    piece: Sequence[int],
    total: float | None = None,
    columns: Mapping[str, Tensor] | None = None,
) -> Batch:
    """The answers of a piece side by side, with the routes that they were sampled along."""
    some = [found[i] for i in piece]
    rows = [Row((*s.prompt, *s.answer), (False,) * len(s.prompt) + (True,) * len(s.answer)) for s in some]
    routes = [torch.from_numpy(s.routes).long() for s in some if s.routes is not None]
    return Batch.of(rows, total, columns, torch.cat(routes) if routes else None)


def _then(found: Sequence[Sampled], piece: Sequence[int]) -> Tensor:
    return torch.tensor([logprob for i in piece for logprob in found[i].logprobs])
