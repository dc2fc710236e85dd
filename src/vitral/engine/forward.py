"""What the engine needs of a model, and how a step's chunks become its arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitral.engine.scheduler import Chunk
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

__all__ = ["I32", "Batch", "Forward", "ShowsTaps", "assemble"]

I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of B sequences, each sequence's tokens together and ascending.

    ids (T,): token ids. positions (T,): places in their sequences, from 0. sequence (T,): rows of the
    page table. page_table (B, P): the pages of each sequence in order, -1 behind its last.
    wanted (R,): which of the T tokens' logits to return. adapters (T,): the numbers of the tokens'
    adapters, -1 for none; None if no token has one.
    """

    ids: I32
    positions: I32
    sequence: I32
    page_table: I32
    wanted: I32
    adapters: I32 | None = None


class Forward(Protocol):
    """A model with a paged cache of keys and values.

    A token's logits depend on the tokens before it in its sequence and on nothing else: not on
    the batch, the chunk, or which pages hold the cache.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def n_pages(self) -> int: ...

    @property
    def page_size(self) -> int:
        """Positions that a page holds."""
        ...

    def __call__(self, batch: Batch) -> F32:
        """Compute the tokens, keep their keys and values in the pages; logits (R, V) of the wanted ones."""
        ...

    def with_hidden(self, batch: Batch) -> tuple[F32, F32]:
        """The same logits, and the final hidden states (R, C) that they were computed from."""
        ...


@runtime_checkable
class ShowsTaps(Protocol):
    """A `Forward` whose values may be seen and changed."""

    @property
    def spec(self) -> ModelSpec: ...

    def with_taps(
        self,
        batch: Batch,
        names: Collection[str],
        on_tap: Callable[[str, NDArray[Any], int], None],
        attention_of: Collection[int],
        later: bool = False,
    ) -> F32:
        """The logits (R, V); `on_tap` sees and may write to the values of these names, on its way.

        Attention scores and patterns come for the sequences `attention_of`, each alone with its number.
        With `later` it sees copies in the same order, as late as behind the last block, and changes nothing.
        """
        ...

    def head_result(self, layer: int, z: F32, head: int) -> F32:
        """As `Reference.head_result`: (n, C) of z (n, H, D). RequestError where the weights are not at hand."""
        ...

    def project_back(self, name: str, x: F32) -> F32:
        """A matrix by its canonical name read backwards: x (n, rows) times W (rows, columns)."""
        ...


def assemble(chunks: Sequence[Chunk]) -> Batch:
    """The arrays of a step, chunk after chunk."""
    ids: list[int] = []
    positions: list[int] = []
    sequence: list[int] = []
    wanted: list[int] = []
    adapters: list[int] = []
    widest = max(len(chunk.request.pages) for chunk in chunks)
    table = np.full((len(chunks), widest), -1, np.int32)
    for row, chunk in enumerate(chunks):
        first = len(ids)
        ids += chunk.ids
        positions += range(chunk.start, chunk.end)
        sequence += [row] * chunk.count
        adapters += [-1 if chunk.request.adapter is None else chunk.request.adapter.number] * chunk.count
        wanted += [first + position - chunk.start for position in chunk.wanted]
        table[row, : len(chunk.request.pages)] = chunk.request.pages
    return Batch(
        np.array(ids, np.int32),
        np.array(positions, np.int32),
        np.array(sequence, np.int32),
        table,
        np.array(wanted, np.int32),
        np.array(adapters, np.int32) if max(adapters) >= 0 else None,
    )
