"""Scales that make the rounding error small: the search inside the encoders.

A group of weights x with importance w is written as `scale * code (+ minimum)`. For given codes
the best scale (and minimum) is a least-squares answer; for a given scale the best code is the
nearest one. Neither knows the other, so the fits try several starting scales, take the best,
and alternate a few times (Lloyd's algorithm on a line). Types with blocks of 256 store the
groups' scales as integers of their own: the same fit finds their common factor, then scale
integers are moved by one step where that lowers the true error.

Arrays are laid out for NumPy: elements of a group along axis 0, so that a sum over a group adds
whole rows. x and w are float32 (n, ...) of one shape; w may be None (all alike).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitral.model.law import F32, I8

__all__ = [
    "Grid",
    "block_affine",
    "block_symmetric",
    "fit_affine",
    "fit_scale",
    "half",
    "super_affine",
    "super_symmetric",
]

HALF_MAX = np.float32(65504)


@dataclass(frozen=True)
class Grid:
    """The codes of a type: all integers from `low` to `high`, or the entries of `table`.

    `reaches`: the codes on which a group's largest magnitude is tried to lie.
    """

    low: int
    high: int
    reaches: tuple[float, ...]
    table: I8 | None = None

    def nearest(self, t: F32) -> F32:
        """The code nearest to t, as float32; t is overwritten."""
        if self.table is None:
            np.rint(t, out=t)
            return np.clip(t, self.low, self.high, out=t)
        t *= 2  # the middle between two entries is a multiple of one half
        np.clip(t, 2 * self.low, 2 * self.high, out=t)
        np.rint(t, out=t)
        at = t.astype(np.int16)
        at -= 2 * self.low
        return np.take(_halves(self.table), at, out=t)


def _halves(table: I8) -> F32:
    """Entry nearest to low, low + 0.5, low + 1 ... high."""
    points = np.arange(2 * int(table[0]), 2 * int(table[-1]) + 1) / 2
    distance: F32 = np.abs(points[:, None] - table)
    nearest: F32 = table[distance.argmin(axis=1)].astype(np.float32)
    return nearest


def half(x: F32) -> F32:
    """Rounded to float16, held inside its range."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def inverse(x: F32) -> F32:
    """1 / x; 0 where x is too small to have one."""
    usable = np.abs(x) > 1e-36
    return np.where(usable, 1 / np.where(usable, x, 1), 0).astype(x.dtype)


def _weighted(w: F32 | None, x: F32) -> F32:
    return x if w is None else w * x


def _dot(a: F32, b: F32) -> F32:
    """Sums over axis 0 of a * b."""
    total: F32 = (a * b).sum(axis=0)
    return total


def _error(x: F32, w: F32 | None, values: F32) -> F32:
    values -= x
    return _dot(_weighted(w, values), values)


def _extreme(x: F32) -> F32:
    """The element of the largest magnitude."""
    highest, lowest = x.max(axis=0), x.min(axis=0)
    extreme: F32 = np.where(highest > -lowest, highest, lowest)
    return extreme


def _fit_half(x: F32, w: F32, grid: Grid) -> F32:
    """Best float16 scale of the scales x of a block's groups; in float64, to tell apart what fits almost alike."""
    wide: Any = np.float64
    scale, _ = fit_scale(x.astype(wide), w.astype(wide), grid, halves=True)
    found: F32 = scale.astype(np.float32)
    return found


def fit_scale(x: F32, w: F32 | None, grid: Grid, rounds: int = 2, *, halves: bool = False) -> tuple[F32, F32]:
    """Best scale of each group and its stiffness, the weighted sum of squared codes.

    Off the best scale by e, the error grows by stiffness * e^2. With `halves` only float16 numbers
    are scales: of several that fit alike, such as for equal elements, one loses least by its rounding.
    """
    wx = _weighted(w, x)
    extreme = _extreme(x)
    per_extreme = inverse(extreme)
    best = np.zeros_like(extreme)
    gain, stiffness = np.zeros_like(extreme), np.zeros_like(extreme)

    def attempt(per_scale: F32) -> None:
        nonlocal best, gain, stiffness
        codes = grid.nearest(x * per_scale)
        along, square = _dot(wx, codes), _dot(_weighted(w, codes), codes)
        scale = along * inverse(square)
        if halves:
            scale = half(scale)
        won = scale * (2 * along - scale * square)
        better = won > gain * np.float32(1 + 2e-7)  # of what float32 cannot tell apart, the first stays
        best, gain = np.where(better, scale, best), np.where(better, won, gain)
        stiffness = np.where(better, square, stiffness)

    for reach in grid.reaches:
        attempt(np.float32(reach) * per_extreme)
    for _ in range(rounds):
        attempt(inverse(best))
    return best, stiffness


def fit_affine(
    x: F32, w: F32 | None, top: int, reaches: Iterable[tuple[float, float]], *, below_zero: bool, rounds: int = 3
) -> tuple[F32, F32]:
    """Best scale and minimum of each group for codes 0 to `top`.

    `reaches`: pairs of codes on which the lowest and the highest element are tried to lie.
    `below_zero` keeps minima at or below zero.
    """
    wx = _weighted(w, x)
    total = np.float32(len(x)) if w is None else w.sum(axis=0)
    total_x, total_xx = wx.sum(axis=0), _dot(wx, x)
    highest, lowest = x.max(axis=0), x.min(axis=0)
    if below_zero:
        lowest = np.minimum(lowest, 0)
        highest = np.maximum(highest, lowest)
    width = highest - lowest
    scale, minimum = np.zeros_like(width), np.where(width > 0, 0, lowest).astype(np.float32)
    error = np.where(width > 0, total_xx, 0)

    def attempt(per_scale: F32, offset: F32) -> None:
        nonlocal scale, minimum, error
        codes = x * per_scale
        codes += offset
        np.rint(codes, out=codes)
        np.clip(codes, 0, top, out=codes)
        weighted = _weighted(w, codes)
        q, qq, xq = weighted.sum(axis=0), _dot(weighted, codes), _dot(wx, codes)
        determinant = total * qq - q * q
        s = (total * xq - total_x * q) * inverse(determinant)
        m = (total_x * qq - q * xq) * inverse(determinant)
        solved = determinant > 1e-6 * total * qq  # below that all codes are equal, and rounding is all there is
        if below_zero:  # the scale alone is an answer too, and the only one for equal codes
            alone = ~solved | (m > 0)
            s, m = np.where(alone, xq * inverse(qq), s), np.where(alone, 0, m)
            solved = qq > 0
        e = total_xx - 2 * (s * xq + m * total_x) + s * s * qq + 2 * s * m * q + m * m * total
        better = (e < error) & solved
        scale, minimum, error = np.where(better, s, scale), np.where(better, m, minimum), np.where(better, e, error)

    per_width = inverse(width)
    for low, high in reaches:
        per_scale = np.float32(high - low) * per_width
        attempt(per_scale, np.float32(low) - lowest * per_scale)
    for _ in range(rounds):
        per_scale = inverse(scale)
        attempt(per_scale, -minimum * per_scale)
    return scale, minimum


def _neighbours(x: F32) -> list[F32]:
    """x rounded to float16, and the next ones below and above."""
    middle = np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16)
    around = [middle, np.nextafter(middle, np.float16(-np.inf)), np.nextafter(middle, np.float16(np.inf))]
    return [np.clip(value.astype(np.float32), -HALF_MAX, HALF_MAX) for value in around]


def block_symmetric(x: F32, w: F32 | None, grid: Grid) -> tuple[F32, F32]:
    """One float16 scale for each group: scales (...), codes (n, ...)."""
    scale, _ = fit_scale(x, w, grid)
    best, error = np.zeros_like(scale), np.full_like(scale, np.inf)
    extreme = _extreme(x)
    edges = (grid.low, grid.low + 1) if grid.table is None else grid.table[[0, 1, 2, 15, 14]].tolist()
    for d in [*_neighbours(scale), *[half(extreme / np.float32(code)) for code in edges]]:
        e = _error(x, w, grid.nearest(x * inverse(d)) * d)
        best, error = np.where(e < error, d, best), np.minimum(e, error)
    return best, grid.nearest(x * inverse(best))


def block_affine(x: F32, w: F32 | None, top: int, reaches: Iterable[tuple[float, float]]) -> tuple[F32, F32, F32]:
    """A float16 scale and minimum for each group: scales, minima (...), codes (n, ...)."""
    scale, minimum = fit_affine(x, w, top, reaches, below_zero=False)
    best_d, best_m, error = np.zeros_like(scale), half(minimum), np.full_like(scale, np.inf)
    for d in _neighbours(scale):
        for m in _neighbours(minimum):
            codes = np.clip(np.rint((x - m) * inverse(d)), 0, top)
            e = _error(x, w, codes * d + m)
            best_d, best_m = np.where(e < error, d, best_d), np.where(e < error, m, best_m)
            error = np.minimum(e, error)
    return best_d, best_m, np.clip(np.rint((x - best_m) * inverse(best_d)), 0, top)


def super_symmetric(x: F32, w: F32 | None, grid: Grid, scale_grid: Grid, rounds: int = 2) -> tuple[F32, F32, F32]:
    """x (n, groups, blocks) as d * scale * code: d (blocks), scales (groups, blocks), codes (n, groups, blocks)."""
    wx = _weighted(w, x)
    wanted, stiffness = fit_scale(x, w, grid)
    d = _fit_half(wanted, stiffness, scale_grid)
    scales = scale_grid.nearest(wanted * inverse(d))
    best = (d, scales, np.full_like(d, np.inf))
    for turn in range(rounds + 1):
        error = np.full_like(scales, np.inf)
        middle = scales
        for step in (0, -1, 1):
            tried = np.clip(middle + np.float32(step), scale_grid.low, scale_grid.high)
            value = d * tried
            e = _error(x, w, grid.nearest(x * inverse(value)) * value)
            better = e < error
            scales, error = np.where(better, tried, scales), np.where(better, e, error)
        total = error.sum(axis=0)
        better = total < best[2]
        best = (np.where(better, d, best[0]), np.where(better, scales, best[1]), np.where(better, total, best[2]))
        if turn < rounds:
            codes = grid.nearest(x * inverse(d * scales))
            along = (_dot(wx, codes) * scales).sum(axis=0)
            square = (_dot(_weighted(w, codes), codes) * scales * scales).sum(axis=0)
            d = half(along * inverse(square))
    d, scales, _ = best
    return d, scales, grid.nearest(x * inverse(d * scales))


def super_affine(
    x: F32, w: F32 | None, top: int, reaches: Iterable[tuple[float, float]], scale_grid: Grid, rounds: int = 2
) -> tuple[F32, F32, F32, F32, F32]:
    """x (n, groups, blocks) as d * scale * code - dmin * minimum.

    d, dmin (blocks); scales, minima (groups, blocks); codes (n, groups, blocks).
    """
    wx = _weighted(w, x)
    weight = np.full(x.shape[1:], len(x), np.float32) if w is None else w.sum(axis=0)
    total_x = wx.sum(axis=0)
    wanted, minimum = fit_affine(x, w, top, reaches, below_zero=True)
    codes = _affine_codes(x, wanted, minimum, top)
    d = _fit_half(wanted, _dot(_weighted(w, codes), codes), scale_grid)
    dmin = _fit_half(-minimum, weight, scale_grid)
    scales = scale_grid.nearest(wanted * inverse(d))
    minima = scale_grid.nearest(-minimum * inverse(dmin))
    best = (d, dmin, scales, minima, np.full_like(d, np.inf))
    for turn in range(rounds + 1):
        error = np.full_like(scales, np.inf)
        middle, centre = scales, minima
        for step in (0, -1, 1):
            tried = np.clip(middle + np.float32(step), scale_grid.low, scale_grid.high)
            for shift in (0, -1, 1):
                moved = np.clip(centre + np.float32(shift), scale_grid.low, scale_grid.high)
                value, low = d * tried, -(dmin * moved)
                codes = _affine_codes(x, value, low, top)
                codes *= value
                codes += low
                e = _error(x, w, codes)
                better = e < error
                scales, minima = np.where(better, tried, scales), np.where(better, moved, minima)
                error = np.where(better, e, error)
        total = error.sum(axis=0)
        better = total < best[4]
        now = (d, dmin, scales, minima, total)
        best = tuple(np.where(better, new, old) for new, old in zip(now, best, strict=True))  # type: ignore[assignment]
        if turn < rounds:
            codes = _affine_codes(x, d * scales, -(dmin * minima), top)
            weighted = _weighted(w, codes)
            ss = (_dot(weighted, codes) * scales * scales).sum(axis=0)
            sm = -(weighted.sum(axis=0) * scales * minima).sum(axis=0)
            mm = (weight * minima * minima).sum(axis=0)
            xs, xm = (_dot(wx, codes) * scales).sum(axis=0), -(total_x * minima).sum(axis=0)
            determinant = ss * mm - sm * sm
            alone = determinant <= 1e-6 * ss * mm  # no minima: the scale is on its own
            d = half(np.where(alone, xs * inverse(ss), (xs * mm - xm * sm) * inverse(determinant)))
            dmin = half(np.where(alone, dmin, (xm * ss - xs * sm) * inverse(determinant)))
    d, dmin, scales, minima, _ = best
    return d, dmin, scales, minima, _affine_codes(x, d * scales, -(dmin * minima), top)


def _affine_codes(x: F32, scale: F32, minimum: F32, top: int) -> F32:
    per_scale = inverse(scale)
    codes = x * per_scale
    codes -= minimum * per_scale
    np.rint(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)
