"""The forward pass in C++: weights go in, ids go in, logits come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.model import rope
from vitral.model.law import F32, LowRank
from vitral.model.spec import ModelSpec
from vitral.native import _core

__all__ = ["Cache", "ExpertCounts", "NativeModel", "OnTap", "argmax", "top_n", "top_rows"]

Cache = _core.Cache
"""Keys and values in pages: `.n_pages`, `.page_size` (positions), `.nbytes`, `.copy_page(from, to)`."""

OnTap = Callable[[str, NDArray[np.generic], int], None]
"""Sees (name, array, sequence) and may write to the array; sequence is -1 where the rows are all tokens'."""

I32 = NDArray[np.int32]

_ROTATED_AT_ONCE = 1024  # positions: few sessions come near the end of their context


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Experts that stay in their file: the most bytes of them in memory, and the bytes that are there now.

    `hits` were in memory when a router chose them, `misses` were not; `bytes_read` are the file's bytes that misses took.
    """

    budget_bytes: int
    held_bytes: int
    hits: int
    misses: int
    bytes_read: int


class NativeModel:
    """A model in memory, packed for this CPU; one call at a time runs, from any thread."""

    def __init__(self, spec: ModelSpec, threads: int, isa: str, expert_bytes: int | None = None) -> None:
        moe = spec.moe
        config = {
            "dim": spec.dim,
            "n_layers": spec.n_layers,
            "n_heads": spec.n_heads,
            "n_kv_heads": spec.n_kv_heads,
            "head_dim": spec.head_dim,
            "hidden_dim": spec.hidden_dim,
            "vocab_size": spec.vocab_size,
            "sliding_window": spec.sliding_window or 0,
            "n_experts": moe.n_experts if moe else 0,
            "n_experts_per_token": moe.n_experts_per_token if moe else 0,
            "n_leading_dense": moe.n_leading_dense if moe else 0,
            "norm_eps": spec.norm_eps,
            "tied_embeddings": spec.tied_embeddings,
        }
        self.spec = spec
        self._context_length = self._n_rotated = 0
        self._model = _core.Model(config, isa, threads)
        if expert_bytes is not None:
            self._model.limit_experts(expert_bytes)

    @property
    def isa(self) -> str:
        """The instruction set that computes."""
        return str(self._model.isa)

    @property
    def threads(self) -> int:
        """How many compute."""
        return int(self._model.threads)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, of experts those that are in memory now."""
        return int(self._model.weight_bytes)

    def set_weight(self, name: str, type: str, raw: NDArray[np.uint8]) -> None:
        """Pack a tensor by its canonical name from GGUF rows, uint8 (rows, bytes per row).

        Norms and routers are float32. ValueError where name, type or shape do not fit.
        """
        self.set_weights([(name, type, raw)])

    def set_weights(self, weights: Sequence[tuple[str, str, NDArray[np.uint8]]]) -> None:
        """Several at once, (name, type, raw) each: other threads of Python run until all are packed."""
        names, types, raws = zip(*weights, strict=True) if weights else ((), (), ())
        self._model.set_weights(names, types, [np.ascontiguousarray(raw) for raw in raws])

    def leave_weight(self, name: str, type: str, raw: NDArray[np.uint8]) -> None:
        """As `set_weight`, for a matrix of an expert that is packed when a router chooses it, under `expert_bytes`.

        `raw` is a contiguous view of a mapped file: its pages are read ahead and let go again.
        """
        self._model.leave_weight(name, type, raw)

    @property
    def expert_counts(self) -> ExpertCounts:
        """What `expert_bytes` led to so far; all 0 without it."""
        return ExpertCounts(**self._model.expert_counts)

    def finish(self) -> None:
        """All weights are set; ValueError names one that is missing, left over or of a wrong shape."""
        self._model.finish()

    def set_context(self, context_length: int) -> None:
        """How many positions `forward` takes, and what a scaling that goes by the length of the context goes by."""
        self._context_length, self._n_rotated = context_length, 0
        self._rotate(0)

    def _rotate(self, position: int) -> None:
        """Rotary tables up to a position; twice as far where they were too short, at most to the end of the context."""
        n = min(max(2 * position, _ROTATED_AT_ONCE), self._context_length)
        self._model.set_rope(*rope.tables(self.spec, n, self._context_length))
        self._n_rotated = n

    def new_cache(self, n_pages: int, page_size: int, kv_type: str) -> Cache:
        """A cache of `n_pages` pages of `page_size` positions (a multiple of 16; of 32 as "bf16" and "q8_0"), of a type of `law.KV_TYPES`."""
        return self._model.new_cache(n_pages, page_size, kv_type)

    def forward(
        self,
        cache: Cache,
        ids: I32,
        positions: I32,
        sequence: I32,
        page_table: I32,
        wanted: I32,
        taps: Sequence[str] = (),
        on_tap: OnTap | None = None,
        adapters: I32 | None = None,
        attention_of: Sequence[int] | None = None,
        later: bool = False,
    ) -> F32:
        """Logits (R, V) of the wanted tokens (R,) of a step of T tokens.

        ids, positions and sequence are (T,); `sequence` is a row of page_table (B, P). Tokens of one
        sequence are consecutive. Values whose names are in `taps` are shown to `on_tap`, which may
        write to them. `adapters` (T,) are the numbers of the tokens' adapters, -1 for none. ValueError
        names what does not fit. Scores and patterns are shown of the sequences `attention_of`, None for all;
        the others go the faster way, to the same bits. With `later` it is shown copies in the same order, when the
        step is done or 16 MB have come together: faster where nobody writes.
        """
        if len(positions) and self._n_rotated < min(n := int(positions.max()) + 1, self._context_length):
            self._rotate(n)
        seen = list(range(len(page_table))) if attention_of is None else list(attention_of)
        which = np.empty(0, np.int32) if adapters is None else adapters
        return self._model.forward(
            cache, ids, positions, sequence, page_table, wanted, list(taps), on_tap, which, seen, later
        )

    def project_back(self, name: str, x: F32) -> F32:
        """A matrix read backwards: x (n, rows) times the dequantised W (rows, columns): (n, columns).

        fma over rows, ascending, in blocks of 256; then the blocks in order. ValueError for another name or shape.
        """
        return self._model.project_back(name, np.ascontiguousarray(x, np.float32))

    def set_adapter(self, id: int, parts: Mapping[str, LowRank]) -> None:
        """Load an adapter under a number from 0; its parts by the canonical names of the matrices they add to."""
        names = list(parts)
        a = [np.ascontiguousarray(parts[name].a) for name in names]
        b = [np.ascontiguousarray(parts[name].b) for name in names]
        self._model.set_adapter(id, names, a, b, [parts[name].scale for name in names])

    def remove_adapter(self, id: int) -> None:
        """Give an adapter's memory back; ValueError if there is none of this number."""
        self._model.remove_adapter(id)


def argmax(logits: F32) -> int:
    """Position of the largest; of equals the lowest.

    >>> argmax(np.array([1, 3, 3], np.float32))
    1
    """
    return int(_core.argmax(np.ascontiguousarray(logits)))


def top_n(logits: F32, n: int) -> I32:
    """Positions of the n largest, largest first; of equals the lower first.

    >>> top_n(np.array([1, 3, 3], np.float32), 2).tolist()
    [1, 2]
    """
    return _core.top_n(np.ascontiguousarray(logits), n)


def top_rows(x: F32, n: int) -> I32:
    """Columns of the n largest of each row, (R, n) of (R, V), largest first; of equals the lower first.

    >>> top_rows(np.array([[1, 3, 3], [9, 0, 1]], np.float32), 2).tolist()
    [[1, 2], [0, 2]]
    """
    return _core.top_rows(np.ascontiguousarray(x, np.float32), n)
