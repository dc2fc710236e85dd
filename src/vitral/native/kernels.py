"""Kernels one by one: quantise activations, pack a weight, multiply.

The engine does not come through here, it calls them in C++; this is the door for tests, lenses
and whoever wants a fast product. Every function takes `isa` (None: the fastest here) and gives
the bits of `vitral.model.law` whichever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.model.law import F32, I8, Quantised
from vitral.native import _core
from vitral.native.features import available, choose

__all__ = ["Kernel", "Packed", "block_sizes", "kernels", "matmul", "pack", "quantise_rows", "rows_of", "unpack"]

Packed = _core.PackedMatrix
"""A weight as kernels read it: `.type`, `.rows`, `.cols`, `.nbytes` (0 where it reads the caller's bytes)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: `op` of the weight type `type` (empty where none is involved) on `isa`."""

    op: str
    type: str
    isa: str


def kernels() -> tuple[Kernel, ...]:
    """Every kernel that can run here; tests walk this list.

    >>> Kernel("matmul", "Q4_0", "scalar") in kernels()
    True
    """
    return tuple(Kernel(op, type, isa) for isa in available() for op, type in _core.kernels(isa))


def block_sizes() -> dict[str, tuple[int, int]]:
    """Elements and bytes of a block of every weight type.

    >>> block_sizes()["Q4_0"]
    (32, 18)
    """
    return {name: (block, n_bytes) for name, block, n_bytes in _core.types()}


def quantise_rows(x: F32, *, isa: str | None = None) -> tuple[I8, F32]:
    """`law.quantise_rows`: codes int8 (T, K) and scales float32 (T, K / 32) of x (T, K).

    Raises ValueError for another dtype or shape, or K not a multiple of 32.
    """
    codes, scales, _ = _core.quantise_rows(_matrix("x", x, np.float32), choose(isa))
    return codes, scales


def pack(type: str, raw: NDArray[np.uint8], *, threads: int = 1) -> Packed:
    """Pack the rows of a GGUF tensor, uint8 (rows, bytes per row).

    A float type is not copied: `raw` stays alive as long as the result. Raises ValueError where
    the type is unknown or the rows are not whole blocks.

    >>> pack("Q8_0", np.zeros((16, 34), np.uint8)).cols
    32
    """
    return _core.pack(type, _matrix("raw", raw, np.uint8), _pool(threads))


def matmul(packed: Packed, x: F32, *, threads: int = 1, isa: str | None = None) -> F32:
    """`law.linear`: x (T, K) float32 times the transposed weight (N, K), float32 (T, N)."""
    x = _matrix("x", x, np.float32)
    if x.shape[1] != packed.cols:
        raise ValueError(f"x: expected (T, {packed.cols}) for this weight, found {x.shape}")
    return _core.matmul(packed, x, _pool(threads), choose(isa))


def rows_of(packed: Packed, which: NDArray[np.int64], *, isa: str | None = None) -> F32:
    """The named rows as float32 (len(which), K), as `Quantised.dequantize` gives them."""
    which = np.asarray(which)
    if which.ndim != 1 or which.dtype != np.int64:
        raise ValueError(f"which: expected int64 (n,), found {which.dtype} {which.shape}")
    if which.size and not 0 <= which.min() <= which.max() < packed.rows:
        raise ValueError(f"which: expected rows 0 to {packed.rows - 1}, found {which.min()} to {which.max()}")
    return _core.rows_of(packed, np.ascontiguousarray(which), choose(isa))


def unpack(packed: Packed, *, isa: str | None = None) -> Quantised:
    """What the panels say, as the law has it. ValueError for a float type."""
    codes, scales, minima, group, has_minima = _core.unpack(packed, choose(isa))
    return Quantised(codes, scales, minima if has_minima else None, group)


@cache
def _pool(threads: int) -> _core.ThreadPool:
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads: expected 1 to 1024, found {threads}")
    return _core.ThreadPool(threads)


def _matrix(name: str, x: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype != dtype:
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name}: expected {np.dtype(dtype)} (rows, columns), found {found}")
    return np.ascontiguousarray(x)
