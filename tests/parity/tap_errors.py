"""How far two sets of taps are apart, tap by tap, with the worst token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.native import native_model
from vitral.formats.weights import Weights
from vitral.model.spec import ModelSpec
from vitral.model.taps import is_attention, taps

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TapError:
    """Largest difference over largest magnitude of a tap, and the row (token) where it is."""

    tap: str
    error: float
    worst_token: int


def our_taps(spec: ModelSpec, weights: Weights, ids: Sequence[int], isa: str, threads: int = 1) -> dict[str, Array]:
    """Every tap of the native model, with keys and values in float32."""
    pages = -(-len(ids) // 16)
    model = native_model(spec, weights, threads=threads, isa=isa, context_length=pages * 16)
    arrays = [np.array(x, np.int32) for x in (ids, range(len(ids)), [0] * len(ids))]
    table = np.arange(pages, dtype=np.int32)[None]
    seen: dict[str, Array] = {}

    def see(name: str, value: Array, _sequence: int) -> None:
        seen[name] = value.copy()

    model.forward(model.new_cache(pages, 16, "f32"), *arrays, table, arrays[1], [tap.name for tap in taps(spec)], see)
    return seen


def tap_errors(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> list[TapError]:
    """For every tap of ours; one that they have not, or whose masks or experts differ, is infinitely far."""
    return [_error(name, value, theirs.get(name)) for name, value in ours.items()]


def _error(name: str, ours: Array, theirs: Array | None) -> TapError:
    if theirs is None or ours.shape != theirs.shape:
        return TapError(name, np.inf, 0)
    axis = 1 if is_attention(name) else 0
    if ours.dtype == np.int32:
        wrong = (ours != theirs).any(axis=-1)
        return TapError(name, np.inf if wrong.any() else 0.0, int(wrong.argmax()))
    finite = np.isfinite(ours) & np.isfinite(theirs)
    same = np.where(finite, True, ours == theirs)
    difference = np.abs(np.where(finite, ours, 0).astype(np.float64) - np.where(finite, theirs, 0))
    difference[~same] = np.inf
    by_token = np.moveaxis(difference, axis, 0).reshape(ours.shape[axis], -1).max(axis=1)
    largest = np.abs(np.where(finite, theirs, 0)).max()
    return TapError(name, float(by_token.max() / largest) if largest else float(by_token.max()), int(by_token.argmax()))
