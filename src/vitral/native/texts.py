"""Strings of vocabularies, which are too many for a loop in Python."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitral.native import _core

__all__ = ["read_texts"]


def read_texts(data: NDArray[np.uint8], at: int, count: int, room: int) -> tuple[list[str], int]:
    """Strings with their lengths before them (64 bits, little-endian), from byte `at` of `data` on, and where they end.

    At most `count`, of at most `room` bytes together. Fewer come back where the data end, the room is
    used up or a string is not UTF-8: what is wrong stands at the place that is returned.
    ValueError for a place outside of the data.
    """
    return _core.read_texts(data, at, count, room)
