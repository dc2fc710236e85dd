"""Rotary position embedding: how far each pair of a head turns at each position.

Source: RoFormer (Su et al. 2021, arXiv 2104.09864) and, for longer contexts, the scalings
named in `RopeSpec`. Angles are computed in float64 and rounded once. Powers, sines and cosines
are ours, not the machine's library's, whose last bits differ from one machine to the next.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitral.model.law import F32
from vitral.model.spec import ModelSpec, RopeSpec

T = TypeVar("T")

__all__ = ["frequencies", "rotate", "tables"]

_AT_ONCE = 256  # positions whose angles stay in a processor's cache


def frequencies(rope: RopeSpec, head_dim: int, context_length: int) -> NDArray[np.float64]:
    """Radians per position of each pair, (D / 2,).

    `context_length` counts for the scaling `dynamic` alone, whose base grows with the length that
    the session was opened for; it is fixed for a session so that a token's angle never depends on
    what comes after it.
    """
    plain = _powers(rope.theta, head_dim)
    match rope.scaling:
        case "none":
            return plain
        case "linear":
            return plain / _known(rope.factor)
        case "factors":
            return plain / np.array(_known(rope.factors), np.float64)
        case "dynamic":
            return _powers(_dynamic_base(rope, head_dim, context_length), head_dim)
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, plain, head_dim)


def tables(spec: ModelSpec, n_positions: int, context_length: int) -> tuple[F32, F32]:
    """Cosines and sines, each (n_positions, D / 2); yarn's attention factor is in both."""
    turns = frequencies(spec.rope, spec.head_dim, context_length)
    size = spec.rope.attention_factor or 1.0
    cos = np.empty((n_positions, len(turns)), np.float32)
    sin = np.empty_like(cos)
    for start in range(0, n_positions, _AT_ONCE):
        some = slice(start, min(start + _AT_ONCE, n_positions))
        c, s = _cos_sin(np.arange(some.start, some.stop, dtype=np.float64)[:, None] * turns)
        cos[some], sin[some] = c * size, s * size
    return cos, sin


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Turn the pairs (d, d + D / 2) of x (T, heads, D) by the rows of cos and sin (T, D / 2)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _powers(theta: float, head_dim: int) -> NDArray[np.float64]:
    """theta^(-2d / D) for d from 0 to D / 2 - 1, rounded from 40 digits."""
    with localcontext() as context:
        context.prec = 40
        base = Decimal(theta)
        return np.array([float(base ** (-Decimal(2 * d) / head_dim)) for d in range(head_dim // 2)])


# Half pi in three parts, the first two of 33 bits, so that their product with a whole number below
# 2^20 is exact in float64 (Cody and Waite, "Software Manual for the Elementary Functions", 1980).
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)


def _cos_sin(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of angles up to a million radians, by Taylor's series on an eighth of a turn."""
    quarter = np.rint(x * (2 / math.pi))
    r = ((x - quarter * _HALF_PI[0]) - quarter * _HALF_PI[1]) - quarter * _HALF_PI[2]
    square = r * r
    cos, sin = np.zeros_like(r), np.zeros_like(r)
    for n in range(9, -1, -1):
        cos = cos * square + (-1) ** n / math.factorial(2 * n)
        sin = sin * square + (-1) ** n / math.factorial(2 * n + 1)
    sin *= r
    turn = quarter.astype(np.int64) & 3
    swap = turn & 1 == 1
    c, s = np.where(swap, sin, cos), np.where(swap, cos, sin)
    return np.where((turn == 1) | (turn == 2), -c, c), np.where(turn >= 2, -s, s)


def _dynamic_base(rope: RopeSpec, head_dim: int, context_length: int) -> float:
    factor, original = _known(rope.factor), _known(rope.original_context)
    if context_length <= original or head_dim == 2:
        return rope.theta
    growth = Decimal(factor) * context_length / original - (Decimal(factor) - 1)
    return float(Decimal(rope.theta) * growth ** (Decimal(head_dim) / (head_dim - 2)))


def _llama3(rope: RopeSpec, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Llama 3.1: slow pairs are stretched, fast ones kept, those between are blended."""
    low, high = _known(rope.low_freq_factor), _known(rope.high_freq_factor)
    turns = _known(rope.original_context) * plain / (2 * math.pi)  # full turns in the original context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (blend + (1 - blend) / _known(rope.factor))


def _yarn(rope: RopeSpec, plain: NDArray[np.float64], head_dim: int) -> NDArray[np.float64]:
    """YaRN (arXiv 2309.00071, section 3.2): a ramp over the pairs between two numbers of turns."""

    def pair_with(turns: float) -> float:
        span = _known(rope.original_context) / (turns * 2 * math.pi)
        return head_dim * math.log(span) / (2 * math.log(rope.theta))

    first = max(math.floor(pair_with(_known(rope.beta_fast))), 0)
    last = min(math.ceil(pair_with(_known(rope.beta_slow))), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return plain * (1 - ramp) + plain / _known(rope.factor) * ramp


def _known(value: T | None) -> T:
    assert value is not None  # RopeSpec has checked it for this scaling
    return value
