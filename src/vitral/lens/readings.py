"""What the steps of a request showed, put together: one array for each value, with the positions of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.model.taps import is_attention

__all__ = ["Reading", "Readings", "position_axis"]

Array = NDArray[Any]
_INDICES = ".indices"  # the columns of the largest entries, as `Watch.top` gives them


@dataclass(frozen=True, slots=True)
class Reading:
    """A value at `positions` (n,): (n, ...), of attention (H, n, S). Rows that are shorter are filled up behind."""

    positions: NDArray[np.int64]
    values: Array


class Readings(Mapping[str, Reading]):
    """Collects what a request's watches show: give `on_value` to the engine.

    >>> readings = Readings()
    >>> readings.on_value("hook_embed", np.array([0]), np.ones((1, 2)))
    >>> readings.on_value("hook_embed", np.array([1]), np.zeros((1, 2)))
    >>> readings["hook_embed"].values.tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[NDArray[np.int64], Array]]] = {}

    def on_value(self, name: str, positions: NDArray[np.int64], rows: Array) -> None:
        """Keep rows of a value; the engine calls it."""
        self._seen.setdefault(name, []).append((positions, rows))

    def __getitem__(self, name: str) -> Reading:
        parts = self._seen[name]
        return Reading(np.concatenate([at for at, _ in parts]), _joined(name, [rows for _, rows in parts]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)


def position_axis(name: str) -> int:
    """The axis of a reading along which its positions run: 1 for attention, whose heads come first."""
    return 1 if is_attention(name.removesuffix(_INDICES)) else 0


def _joined(name: str, parts: list[Array]) -> Array:
    """The rows of all steps; those of attention get as many keys as the longest has."""
    if position_axis(name) == 0:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    widest = max(part.shape[-1] for part in parts)
    nothing = -1 if name.endswith(_INDICES) else -np.inf if name.endswith("hook_attn_scores") else 0
    rows = sum(part.shape[1] for part in parts)
    joined = np.full((len(parts[0]), rows, widest), nothing, parts[0].dtype)
    first = 0
    for part in parts:
        joined[:, first : first + part.shape[1], : part.shape[-1]] = part
        first += part.shape[1]
    return joined
