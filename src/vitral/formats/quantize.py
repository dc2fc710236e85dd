"""Quantisation: float32 values to the bytes of any weight type, with the error that it cost.

The encoders minimise the (weighted) squared error itself, by the searches of `fit.py`. An
importance, one number for each column, makes errors in columns that carry large activations
count for more (`importance.py`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError
from vitral.formats import fit
from vitral.formats.pack import PACKERS
from vitral.formats.quants import IQ4_VALUES, TYPES, WeightType, decode, row_bytes, type_info
from vitral.model.law import F32, Quantised

__all__ = ["TensorError", "encode", "quantize_tensor"]

U8 = NDArray[np.uint8]
CHUNK = 1 << 16  # weights that one task works on: its arrays fit a core's cache


@dataclass(frozen=True, slots=True)
class TensorError:
    """What quantising one tensor cost.

    `rmse` is the root of the mean squared error, `relative` that over the root mean square of
    the values, `largest` the largest magnitude of an error. `weighted` is `relative` with each
    column's error times its importance, None where none was given. `fallback_from` names the
    type that was asked for where the shape forbade it; `requantised` says that the values came from
    another quantised type, whose own error is not in these numbers.
    """

    name: str
    type: WeightType
    shape: tuple[int, ...]
    bits_per_weight: float
    rmse: float
    relative: float
    largest: float
    weighted: float | None = None
    fallback_from: WeightType | None = None
    requantised: bool = False


def quantize_tensor(
    values: F32,
    type: WeightType,
    importance: F32 | None = None,
    *,
    name: str = "",
    fallback_from: WeightType | None = None,
    threads: int | None = None,
) -> tuple[U8, TensorError]:
    """Encode a tensor (rows, K) or (n,) and measure the error: bytes (rows, bytes per row), TensorError.

    Raises FormatError for values that are not finite, a K that is not whole blocks, or an
    importance that does not fit.

    >>> raw, error = quantize_tensor(np.eye(4, 32, dtype=np.float32), "Q8_0")
    >>> raw.shape, error.bits_per_weight, error.rmse < 1e-4
    ((4, 34), 8.5, True)
    """
    rows = values.reshape(1, -1) if values.ndim == 1 else values
    raw = encode(type, rows, importance, threads=threads)
    squares = total = largest = weighted = weighted_total = 0.0
    step = max(1, (1 << 22) // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        x = np.asarray(rows[start : start + step], np.float32)
        read = decode(type, raw[start : start + step])
        difference = (read.dequantize() if isinstance(read, Quantised) else read) - x
        by_column = np.einsum("nk,nk->k", difference, difference, dtype=np.float64)
        x_by_column = np.einsum("nk,nk->k", x, x, dtype=np.float64)
        squares, total = squares + by_column.sum(), total + x_by_column.sum()
        largest = max(largest, float(np.abs(difference).max(initial=0)))
        if importance is not None:
            weighted += float(by_column @ importance)
            weighted_total += float(x_by_column @ importance)
    return raw, TensorError(
        name=name,
        type=type,
        shape=values.shape,
        bits_per_weight=TYPES[type].bits_per_weight,
        rmse=math.sqrt(squares / max(1, values.size)),
        relative=math.sqrt(squares / total) if total else 0.0,
        largest=largest,
        weighted=(math.sqrt(weighted / weighted_total) if weighted_total else 0.0) if importance is not None else None,
        fallback_from=fallback_from,
    )


def encode(type: WeightType, values: F32, importance: F32 | None = None, *, threads: int | None = None) -> U8:
    """Encode float32 (rows, K) as uint8 (rows, bytes per row).

    `importance` is float32 (K,), not negative; `threads` defaults to the processors that this
    process may use. The bytes do not depend on `threads`. Raises FormatError as
    `quantize_tensor` does.

    >>> encode("F16", np.ones((1, 2), np.float32)).tolist()
    [[0, 60, 0, 60]]
    """
    info = type_info(type)
    if values.ndim != 2:
        raise FormatError(f"an encoder wants a matrix (rows, K), found shape {values.shape}")
    width = row_bytes(type, values.shape[1])
    if importance is not None:
        _check_importance(importance, values.shape[1])
    if type in _FLOATS:
        return _FLOATS[type](np.ascontiguousarray(values, np.float32)).reshape(len(values), width)
    if not np.isfinite(values).all():
        raise FormatError(f"{type} cannot hold infinities or NaN, and the tensor has some; repair the checkpoint first")
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, info.block)
    raw = np.empty((len(blocks), info.bytes_per_block), np.uint8)
    per_row = values.shape[1] // info.block
    step = max(1, CHUNK // info.block)

    def task(start: int) -> None:
        w = None
        if importance is not None:
            of_row = np.arange(start, min(start + step, len(blocks))) % per_row
            w = _layout(importance.reshape(per_row, info.block)[of_row].astype(np.float32), _GROUPS.get(type, 1))
        raw[start : start + step] = _encode_blocks(type, blocks[start : start + step], w)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(task, range(0, len(blocks), step)):
            pass
    return raw.reshape(len(values), width)


def _check_importance(importance: F32, columns: int) -> None:
    if importance.shape != (columns,):
        raise FormatError(f"importance wants one number for each of {columns} columns, found shape {importance.shape}")
    if not np.isfinite(importance).all() or (importance < 0).any() or not importance.any():
        raise FormatError("importance wants finite numbers that are not negative and not all zero")


def _layout(blocks: F32, groups: int) -> F32:
    """Blocks (B, block) as (n, groups, B), or (n, B) for one group: elements of a group along axis 0."""
    x = blocks.reshape(len(blocks), groups, -1).transpose(2, 1, 0)
    return np.ascontiguousarray(x if groups > 1 else x[:, 0])


def _steps(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, count).tolist())


def _span(top: int, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Pairs of codes for the lowest and the highest element of a group."""
    return tuple((a, top + b) for a in low for b in high)


_GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q4_K": 8, "Q5_K": 8, "Q6_K": 16, "IQ4_XS": 8}
_IQ4 = fit.Grid(-127, 113, (*_steps(-138, -110, 9), *_steps(104, 122, 5)), IQ4_VALUES)
_GRIDS = {
    "Q4_0": fit.Grid(-8, 7, (*_steps(-9, -6.8, 12), *_steps(6.6, 7.6, 6))),
    "Q5_0": fit.Grid(-16, 15, (*_steps(-17, -14.8, 10), *_steps(14.6, 15.6, 5))),
    "Q8_0": fit.Grid(-127, 127, _steps(125.5, 127.9, 9)),
    "IQ4_NL": _IQ4,
    "Q3_K": fit.Grid(-4, 3, (*_steps(-4.9, -2.9, 11), *_steps(2.6, 3.6, 6))),
    "Q6_K": fit.Grid(-32, 31, (*_steps(-33, -30.6, 9), *_steps(30.4, 31.6, 3))),
    "IQ4_XS": _IQ4,
}
_SCALES = {
    "Q3_K": fit.Grid(-32, 31, _steps(-33, -24, 19)),
    "Q6_K": fit.Grid(-128, 127, _steps(-128, -100, 15)),
    "IQ4_XS": fit.Grid(-32, 31, _steps(-33, -24, 19)),
    "Q2_K": fit.Grid(0, 15, _steps(15.6, 9, 24)),
    "Q4_K": fit.Grid(0, 63, _steps(63.4, 48, 24)),
    "Q5_K": fit.Grid(0, 63, _steps(63.4, 48, 24)),
}
_AFFINE = {
    "Q4_1": (15, (*_span(15, (-0.6, -0.2, 0.2), (-0.2, 0.2, 0.6)), (0.0, 14.1))),
    "Q5_1": (31, (*_span(31, (-0.4, 0.0), (0.0, 0.4)), (0.0, 30.1))),
    "Q2_K": (3, _span(3, (-0.6, -0.3, 0.0, 0.3), (-0.3, 0.0, 0.3, 0.6))),
    "Q4_K": (15, (*_span(15, (-0.6, -0.2, 0.2), (-0.2, 0.2, 0.6)), (0.0, 14.1))),
    "Q5_K": (31, (*_span(31, (-0.4, 0.0), (0.0, 0.4)), (0.0, 30.1))),
}


def _encode_blocks(type: str, blocks: F32, w: F32 | None) -> U8:
    """Blocks (B, block) to bytes (B, bytes per block)."""
    x = _layout(blocks, _GROUPS.get(type, 1))
    d = m = np.zeros(len(blocks), np.float32)
    scales = minima = np.zeros((1, len(blocks)), np.float32)
    if type in _GROUPS and type in _AFFINE:
        d, m, scales, minima, codes = fit.super_affine(x, w, *_AFFINE[type], _SCALES[type])
    elif type in _GROUPS:
        d, scales, codes = fit.super_symmetric(x, w, _GRIDS[type], _SCALES[type])
    elif type in _AFFINE:
        d, m, codes = fit.block_affine(x, w, *_AFFINE[type])
    else:
        d, codes = fit.block_symmetric(x, w, _GRIDS[type])
    by_block = (
        np.moveaxis(codes, -1, 0).reshape(len(blocks), *codes.shape[-2::-1])
        if codes.ndim == 2
        else codes.transpose(2, 1, 0)
    )
    stored = _stored(type, by_block.reshape(len(blocks), -1))
    return PACKERS[type](
        stored,
        d.astype("<f2")[:, None],
        m.astype("<f2")[:, None],
        np.ascontiguousarray(scales.T.astype(np.int16)),
        np.ascontiguousarray(minima.T.astype(np.int16)),
    )


def _stored(type: str, codes: F32) -> U8:
    """Codes as the file has them: an index into the table, or counted from the lowest (Q8_0: two's complement)."""
    if type in ("IQ4_NL", "IQ4_XS"):
        return np.searchsorted(IQ4_VALUES, codes.astype(np.int8)).astype(np.uint8)
    if type == "Q8_0":
        return codes.astype(np.int8).view(np.uint8)
    lowest = _GRIDS[type].low if type in _GRIDS else 0
    return (codes - np.float32(lowest)).astype(np.uint8)


def _bfloat16(values: F32) -> U8:
    """Rounded to the nearest, ties to even; a NaN stays one."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").view(np.uint8)


def _float16(values: F32) -> U8:
    beyond = np.abs(values) >= 65520  # what rounds to infinity
    if (beyond & np.isfinite(values)).any():
        raise FormatError(
            f"F16 holds magnitudes up to 65504, the tensor reaches {float(np.abs(values[beyond]).max()):g}; use BF16 or F32"
        )
    return values.astype("<f2").view(np.uint8)


_FLOATS: dict[str, Callable[[F32], U8]] = {
    "F32": lambda values: values.astype("<f4").view(np.uint8),
    "F16": _float16,
    "BF16": _bfloat16,
}
