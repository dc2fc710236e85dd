"""Rows of ids become one batch: what is read, and where the next token carries loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from vitral.tune.forward import Packed

__all__ = ["Batch", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of ids; `supervised` says of each whether it carries loss. The first can't: nothing predicts it."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.supervised) or not self.ids:
            raise ValueError(
                f"{len(self.ids)} ids and {len(self.supervised)} marks; one mark for each of at least one id"
            )
        if self.supervised[0]:
            raise ValueError("the first token of a sequence cannot carry loss: nothing before it predicts it")

    @property
    def n_supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(self.supervised)


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, B of them, T tokens, N supervised.

    places (N,): tokens whose *next* token is supervised. labels (N,): that next token.
    columns: facts of each sequence (B,) or each supervised token (N,) that a loss asks for.
    total: what the loss of the whole step is divided by; a step may be cut into several batches.
    routes (T, M, k): the experts to follow in each of the M layers that have some, -1 where a token has none to follow.
    """

    packed: Packed
    places: Tensor
    labels: Tensor
    total: float
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    routes: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        total: float | None = None,
        columns: Mapping[str, Tensor] | None = None,
        routes: Tensor | None = None,
    ) -> Batch:
        """A batch of rows; `total` is its number of supervised tokens unless given.

        >>> batch = Batch.of([Row((5, 6, 7), (False, False, True)), Row((8, 9), (False, True))])
        >>> batch.places.tolist(), batch.labels.tolist(), batch.total
        ([1, 3], [7, 9], 2)
        """
        packed = Packed.of([row.ids for row in rows])
        carried = torch.tensor([mark for row in rows for mark in row.supervised]).nonzero()[:, 0]
        total = len(carried) if total is None else total
        return cls(packed, carried - 1, packed.ids[carried], total, columns or {}, routes)

    @property
    def n_sequences(self) -> int:
        """How many sequences there are."""
        return len(self.packed.lengths)

    @cached_property
    def owners(self) -> Tensor:
        """Number of the sequence of each supervised token, (N,)."""
        return self.packed.owners[self.places]

    @cached_property
    def counts(self) -> Tensor:
        """Supervised tokens of each sequence, (B,)."""
        return torch.bincount(self.owners, minlength=self.n_sequences)

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sums over the supervised tokens of each sequence: (N,) to (B,)."""
        return values.new_zeros(self.n_sequences).index_add(0, self.owners, values)

    def everywhere(self) -> Batch:
        """The same sequences with loss on every token but the first of each."""
        places = (self.packed.owners[1:] == self.packed.owners[:-1]).nonzero()[:, 0]
        return replace(self, places=places, labels=self.packed.ids[places + 1])
