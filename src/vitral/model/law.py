"""The numeric law: which float32 operations happen, in which order.

`reference.py` is written in these functions and every kernel must give their bits. They make
a result independent of batch, chunk, cache, thread count and instruction set:

- `fma` rounds once. Plain `+ - * /` and square root round once each, as IEEE 754 says.
- A sum has 16 lanes: lane j takes the elements whose position is j modulo 16, in ascending
  order, starting from zero; then lanes merge by halves (0..7 with 8..15, 0..3 with 4..7, ...).
- A product with a quantised weight is exact in integers inside a group of 16 or 32 columns;
  over the groups it is one chain of `fma`, groups ascending.
- What an adapter adds is a product of floats, whatever the type of its matrix: `low_rank`.
- Activations meet a quantised weight as 8-bit integers, one scale for each row and 32 columns.
- Attention over keys and values kept as bfloat16, or as bytes with scales that become so when read,
  multiplies bfloat16 numbers two by two, as the tile unit of AMX does: `pair_products`.

All arrays are float32 unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "KV_DEFAULT",
    "KV_TYPES",
    "LANES",
    "SPLIT",
    "F32",
    "I8",
    "KvType",
    "LowRank",
    "Quantised",
    "attention_scores",
    "attention_z",
    "bfloat16",
    "exp",
    "fma",
    "kept",
    "lane_sum",
    "linear",
    "low_rank",
    "pair_products",
    "quantise_rows",
    "rms_scale",
    "silu",
    "softmax",
    "top_k",
]

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]

LANES = 16  # partial sums of every float sum
BLOCK = 32  # columns that share one activation scale
SPLIT = 256  # keys that attention sums before merging, by absolute position
PAIRS = 32  # elements, two by two, whose products are summed before they join the rest

KvType = Literal["f32", "f16", "bf16", "q8_0"]
KV_TYPES: tuple[KvType, ...] = ("f32", "f16", "bf16", "q8_0")  # what keys and values may be kept as
KV_DEFAULT: KvType = "bf16"


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight matrix of N rows and K columns as integers with scales.

    The value at column k of group g = k // group is `scales[g] * codes[k] + minima[g]`
    (no minima: nothing is added), rounded after the product and after the sum.

    codes: int8 (N, K). scales: float32 (N, K / group). minima: the same, or None.
    group: 16 or 32 columns.
    """

    codes: I8
    scales: F32
    minima: F32 | None
    group: int

    def rows(self, which: NDArray[np.int64]) -> Quantised:
        """The named rows alone."""
        return Quantised(
            self.codes[which], self.scales[which], None if self.minima is None else self.minima[which], self.group
        )

    def dequantize(self) -> F32:
        """The values, float32 (N, K)."""
        values = self.codes.astype(np.float32) * np.repeat(self.scales, self.group, axis=1)
        if self.minima is not None:
            values += np.repeat(self.minima, self.group, axis=1)
        return values


def fma(a: F32, b: F32, c: F32) -> F32:
    """`a * b + c` rounded once to float32.

    The product is exact in float64; the sum is rounded there to odd, which keeps the second
    rounding honest (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

    >>> float(fma(np.float32(1 + 2**-12), np.float32(1 - 2**-12), np.float32(-1))) == -(2.0**-24)
    True
    """
    with np.errstate(over="ignore"):
        return _fma_odd(a, b, c).astype(np.float32)


def _fma_odd(a: F32, b: F32, c: F32) -> NDArray[np.float64]:
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    with np.errstate(invalid="ignore"):
        part = total - product
        lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    inexact = (lost != 0) & (bits & 1 == 0) & np.isfinite(total) & np.isfinite(lost)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def lane_sum(x: F32) -> F32:
    """Sum over the last axis in LANES lanes; (..., n) to (...)."""
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for column in _columns(x):
        lanes = lanes + column
    return _merge(lanes)


def rms_scale(x: F32, eps: float) -> F32:
    """Root of the mean square plus `eps`; (..., C) to (..., 1). RMSNorm, arXiv 1910.07467."""
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for column in _columns(x):
        lanes = fma(column, column, lanes)
    mean = _merge(lanes) / np.float32(x.shape[-1])
    return np.asarray(np.sqrt(mean + np.float32(eps)), np.float32)[..., None]


# exp(r) on |r| <= ln(2) / 2 as 1 + r + r^2 * polynomial(r): coefficients of Cephes' expf
# (S. Moshier, 1989), highest power first.
_EXP = [np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)]  # fmt: skip
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_LOWEST, _EXP_HIGHEST = np.float32(-87.0), np.float32(88.0)


def exp(x: F32) -> F32:
    """The exponential, one polynomial everywhere; within 2 units in the last place.

    Below -87 it is 0, above 88 it is exp(88); NaN stays NaN.

    >>> float(exp(np.float32(0)))
    1.0
    """
    x = np.asarray(x, np.float32)
    t = np.minimum(np.maximum(x, _EXP_LOWEST), _EXP_HIGHEST)
    n = np.rint(t * _LOG2_E)
    r = fma(n, np.asarray(-_LN2_LOW), fma(n, np.asarray(-_LN2_HIGH), t))
    p = np.broadcast_to(_EXP[0], r.shape)
    for coefficient in _EXP[1:]:
        p = fma(p, r, np.broadcast_to(coefficient, r.shape))
    y = fma(p, r * r, r) + np.float32(1)
    with np.errstate(invalid="ignore"):
        power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    y = np.where(np.isnan(x), x, y * power)
    return np.where(x < _EXP_LOWEST, np.float32(0), y).astype(np.float32)


def silu(x: F32) -> F32:
    """`x / (1 + exp(-x))`, elementwise."""
    return x / (np.float32(1) + exp(-x))


def softmax(x: F32) -> F32:
    """Softmax over the last axis; minus infinity gets 0.

    The sum runs in lanes inside splits of SPLIT elements; split sums are added in ascending order.
    """
    p = exp(x - x.max(axis=-1, keepdims=True))
    total = np.zeros(x.shape[:-1], np.float32)
    for start in range(0, x.shape[-1], SPLIT):
        total = total + lane_sum(p[..., start : start + SPLIT])
    return p * (np.float32(1) / total)[..., None]


def bfloat16(x: F32) -> F32:
    """`x` rounded to bfloat16 (8 significant bits, ties to even), as float32; subnormal numbers become zero.

    >>> float(bfloat16(np.float32(1.005859375)))  # 1 + 1.5 / 256
    1.0078125
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), rounded)
    rounded = np.where(bits & np.uint32(0x7F800000) == 0, bits & np.uint32(0x80000000), rounded)
    return (rounded & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


# Halfway between the largest float32 below 2^-126, had it 24 significant bits, and 2^-126.
_TINY = 2.0**-126 - 2.0**-151


def _flushed(x: NDArray[np.float64]) -> F32:
    with np.errstate(over="ignore"):
        return np.where(np.abs(x) < _TINY, np.copysign(0.0, x), x).astype(np.float32)


def pair_products(a: F32, b: F32) -> F32:
    """`a @ b.T` for bfloat16 numbers a (..., M, K) and b (..., N, K): (..., M, N).

    In PAIRS columns one chain of fma from zero over the even places and one over the odd, ascending;
    the two are added, and their sum to that of the columns before. Subnormal results become zero.
    These are the bits of the instruction TDPBF16PS, found by measuring; on a CPU that has it
    tests/parity/test_reference_engine.py compares them.
    """
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-2]), np.float32)
    for start in range(0, a.shape[-1], PAIRS):
        chains = [np.zeros_like(total), np.zeros_like(total)]
        for k in range(start, min(start + PAIRS, a.shape[-1])):
            chains[k % 2] = _flushed(_fma_odd(a[..., :, None, k], b[..., None, :, k], chains[k % 2]))
        both = _flushed((chains[0] + chains[1]).astype(np.float64))
        total = _flushed((total + both).astype(np.float64))
    return total


def kept(k: F32, v: F32, kv_type: KvType) -> tuple[F32, F32]:
    """What a cache keeps of keys and values (..., D), as float32.

    Rounded to nearest, ties to even. "q8_0": `quantise_rows` of each BLOCK of dimensions (the last filled up
    with zeros), the scale as float16; code times scale, as bfloat16. As "bf16" and "q8_0" a position with a
    value that is not finite has zeros as values and NaN as key: who sees it gets NaN, who does not is untouched.
    """
    if kv_type == "f32":
        return k, v
    with np.errstate(over="ignore"):
        if kv_type == "f16":
            return k.astype(np.float16).astype(np.float32), v.astype(np.float16).astype(np.float32)
        k, v = (_eight_bits(k), _eight_bits(v)) if kv_type == "q8_0" else (bfloat16(k), bfloat16(v))
    lost = ~np.isfinite(v).all(axis=-1, keepdims=True)
    return np.where(lost, np.float32(np.nan), k), np.where(lost, np.float32(0), v)


def _eight_bits(x: F32) -> F32:
    n = x.shape[-1]
    codes, scales = quantise_rows(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % BLOCK)]))
    with np.errstate(invalid="ignore"):  # zero times an infinite scale
        values = codes.astype(np.float32) * np.repeat(scales.astype(np.float16).astype(np.float32), BLOCK, axis=-1)
    return bfloat16(values[..., :n])


def attention_scores(q: F32, k: F32, kv_type: KvType = "f32") -> F32:
    """Scaled dot products of queries (..., T, D) and keys (..., S, D): (..., T, S).

    One chain of fma over D, ascending; then times 1 / sqrt(D). For "bf16" and "q8_0" the queries are rounded
    and the products are `pair_products`.
    """
    root = np.float32(1 / math.sqrt(q.shape[-1]))
    if kv_type in ("bf16", "q8_0"):
        return pair_products(bfloat16(q), k) * root
    scores = np.zeros((*q.shape[:-1], k.shape[-2]), np.float32)
    for d in range(q.shape[-1]):
        scores = fma(q[..., :, None, d], k[..., None, :, d], scores)
    return scores * root


def attention_z(pattern: F32, v: F32, kv_type: KvType = "f32") -> F32:
    """Mix of values: pattern (..., T, S) by v (..., S, D) gives (..., T, D).

    One chain of fma over the keys of a split, ascending; split sums are added in ascending order. For
    "bf16" and "q8_0" the pattern is rounded and the products are `pair_products`, whole PAIRS of positions
    with zeros behind the last; then 0 is added, so that no zero has a sign.
    """
    if kv_type in ("bf16", "q8_0"):
        behind = -v.shape[-2] % PAIRS
        pattern = np.pad(bfloat16(pattern), [(0, 0)] * (pattern.ndim - 1) + [(0, behind)])
        v = np.pad(v, [(0, 0)] * (v.ndim - 2) + [(0, behind), (0, 0)])
        return pair_products(pattern, v.swapaxes(-1, -2)) + np.float32(0)
    z = np.zeros((*pattern.shape[:-1], v.shape[-1]), np.float32)
    for start in range(0, pattern.shape[-1], SPLIT):
        part = np.zeros_like(z)
        for s in range(start, min(start + SPLIT, pattern.shape[-1])):
            part = fma(pattern[..., :, s, None], v[..., None, s, :], part)
        z = z + part
    return z


def quantise_rows(x: F32) -> tuple[I8, F32]:
    """Activations (..., K) as codes int8 (..., K) and scales (..., K / BLOCK).

    Scale = largest magnitude / 127; code = x * (127 / largest magnitude), rounded to nearest,
    ties to even. An all-zero block has scale 0; one with an infinity or a NaN has scale NaN and
    codes 0, so that what it touches becomes NaN and cannot pass for a number. K is a multiple
    of BLOCK.
    """
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    finite = np.isfinite(largest)
    safe = np.where(finite, largest, np.float32(0))
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.where(safe > 0, np.float32(127) / safe, np.float32(0))
    usable = np.isfinite(inverse)  # a largest magnitude below 2^-121 has no finite inverse: it counts as zero
    inverse = np.where(usable, inverse, np.float32(0))
    scales = np.where(usable, safe / np.float32(127), np.float32(0))
    scales = np.where(finite, scales, np.float32(np.nan))
    codes = np.rint(np.where(finite[..., None], blocks, np.float32(0)) * inverse[..., None])
    return codes.astype(np.int8).reshape(x.shape), scales


def linear(w: Quantised | F32, x: F32) -> F32:
    """`x @ w.T` for activations (T, K) and a weight of N rows: (T, N)."""
    return _linear_quantised(w, x) if isinstance(w, Quantised) else _linear_float(w, x)


def _linear_quantised(w: Quantised, x: F32) -> F32:
    codes, scales = quantise_rows(x)
    main = np.zeros((x.shape[0], w.codes.shape[0]), np.float32)
    low = np.zeros_like(main)
    for g in range(x.shape[1] // w.group):
        columns = slice(g * w.group, (g + 1) * w.group)
        a = codes[:, columns].astype(np.float32)  # (T, group)
        s = scales[:, g * w.group // BLOCK, None]  # (T, 1)
        dots = a @ w.codes[:, columns].astype(np.float32).T  # integers below 2^24: exact in any order
        main = fma(dots, w.scales[None, :, g] * s, main)
        if w.minima is not None:
            low = fma(s * a.sum(axis=1, keepdims=True), w.minima[None, :, g], low)
    return main + low if w.minima is not None else main


def _linear_float(w: F32, x: F32) -> F32:
    out = np.empty((x.shape[0], w.shape[0]), np.float32)
    rows = max(1, (1 << 21) // (max(1, x.shape[0]) * LANES))
    columns = list(_columns(x))
    for start in range(0, w.shape[0], rows):
        some = w[start : start + rows]
        lanes = np.zeros((x.shape[0], some.shape[0], LANES), np.float32)
        for mine, theirs in zip(columns, _columns(some), strict=True):
            lanes = fma(mine[:, None], theirs[None], lanes)
        out[:, start : start + rows] = _merge(lanes)
    return out


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a matrix of N rows and K columns: a (r, K), b (N, r), and the scale of their product."""

    a: F32
    b: F32
    scale: float


def low_rank(part: LowRank, x: F32, out: F32) -> F32:
    """`out + scale * (x @ a.T) @ b.T` for activations (T, K) and the matrix's own product (T, N). LoRA, arXiv 2106.09685.

    Two products with floats, in lanes; then one fma for each element.
    """
    return fma(np.asarray(part.scale, np.float32), linear(part.b, linear(part.a, x)), out)


def top_k(x: F32, k: int) -> NDArray[np.int32]:
    """Positions of the k largest over the last axis, largest first; of equals the lower position wins."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)


def _columns(x: F32) -> list[F32]:
    """The last axis in pieces of LANES, zeros behind its end."""
    missing = -x.shape[-1] % LANES
    if missing:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], missing), np.float32)], axis=-1)
    return [x[..., i : i + LANES] for i in range(0, x.shape[-1], LANES)]


def _merge(lanes: F32) -> F32:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]
