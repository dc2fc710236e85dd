"""Which items make which step, and how they become batches. The order follows from seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vitral.errors import DataError
from vitral.tune.batch import Batch, Row
from vitral.tune.data.examples import Pair, Rated, Task
from vitral.tune.data.load import Item
from vitral.tune.losses import Unit

__all__ = ["Order", "batches_of", "check_shape"]

_PAIRED = ("dpo", "ipo", "orpo", "reward")
_SHAPES = dict.fromkeys(_PAIRED, Pair) | {"kto": Rated} | dict.fromkeys(("grpo", "ppo", "rejection"), Task)


@dataclass(frozen=True, slots=True)
class Order:
    """`n` items, each once in every epoch, shuffled anew for each; a step takes the next `batch`.

    An epoch's last step may be smaller: no item is repeated or left out to fill it.

    >>> order = Order(5, 2, seed=0)
    >>> order.steps_per_epoch, sorted(order.step(0) + order.step(1) + order.step(2))
    (3, [0, 1, 2, 3, 4])
    """

    n: int
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every item was seen once more."""
        return math.ceil(self.n / self.batch)

    def step(self, step: int) -> list[int]:
        """Numbers of the items of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        shuffled = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.n)
        return [int(i) for i in shuffled[place * self.batch : (place + 1) * self.batch]]


def check_shape(loss: str, items: Sequence[Item]) -> None:
    """Raise DataError if the loss wants another kind of example."""
    wanted = _SHAPES.get(loss)
    for item in items:
        kind = type(item.example)
        if (wanted is not None and kind is not wanted) or (wanted is None and kind in (Pair, Rated)):
            name = {
                Pair: "pairs (chosen, rejected)",
                Rated: "rated answers (prompt, completion, label)",
                Task: "questions with verifiable answers (prompt, answer)",
            }
            raise DataError(
                f"{item.example.place} is no record for the loss {loss}; it learns from "
                f"{name.get(wanted, 'conversations or texts') if wanted else 'conversations or texts'}"
            )


def batches_of(
    items: Sequence[Item], loss: str, unit: Unit, piece_tokens: int, total: float | None = None
) -> list[Batch]:
    """The items as batches of at most `piece_tokens` ids each (or one item), with the step's total in all.

    KTO's items stay together: each is compared with the answer to the one before it.
    """
    if total is None:
        total = count_units(items, unit)
    pieces = [list(items)] if loss == "kto" else _pieces(items, piece_tokens)
    return [_batch(piece, loss, total) for piece in pieces]


def count_units(items: Sequence[Item], unit: Unit) -> float:
    """What a loss is divided by."""
    return float(sum(row.n_supervised for item in items for row in item.rows) if unit == "tokens" else len(items))


def _pieces(items: Sequence[Item], piece_tokens: int) -> list[list[Item]]:
    found: list[list[Item]] = []
    room = 0
    for item in items:
        if item.n_tokens > room:
            found.append([])
            room = piece_tokens
        found[-1].append(item)
        room -= item.n_tokens
    return found


def _batch(items: list[Item], loss: str, total: float) -> Batch:
    if loss in _PAIRED:
        rows = [item.rows[0] for item in items] + [item.rows[1] for item in items]
        if loss != "reward":
            return Batch.of(rows, total)
        margin = torch.tensor([item.example.margin for item in items if isinstance(item.example, Pair)])
        return Batch.of(rows, total, {"margin": margin})
    if loss == "kto":
        rows = [item.rows[0] for item in items]
        others = [_answered_by(rows[i], rows[i - 1]) for i in range(len(rows))]
        good = torch.tensor([item.example.good for item in items if isinstance(item.example, Rated)])
        return Batch.of([*rows, *others], total, {"good": good})
    return Batch.of([row for item in items for row in item.rows], total)


def _answered_by(row: Row, other: Row) -> Row:
    """The prompt of one row with the answer of another."""
    prompt = row.ids[: row.supervised.index(True)]
    begin = other.supervised.index(True)
    return Row((*prompt, *other.ids[begin:]), (False,) * len(prompt) + other.supervised[begin:])
