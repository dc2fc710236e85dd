"""Strings of vocabularies, which are too many for a loop in Python."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vitral.native import _core

__all__ = ["Merges", "Texts", "read_texts", "texts_of"]

Texts = _core.Texts
"""Strings that are no objects until one is asked for: a sequence of str, `.tolist()`, `.longest` in bytes."""

Merges = _core.Merges
"""A vocabulary's Texts, and those of its merges: two pieces with a space between them, first ones first.

`.twice` is the first piece that stands there twice and `.odd` the first merge that is not two pieces, -1 for none;
`.unknown` what a merge names that is no piece, None for nothing. `.within(text)` gives the pieces that are parts of a
text, by id, and the merges among them, which are all that merging it can come by.
"""


def read_texts(data: NDArray[np.uint8], at: int, count: int, room: int) -> tuple[Texts, int]:
    """Strings with their lengths before them (64 bits, little-endian), from byte `at` of `data` on, and where they end.

    At most `count`, of at most `room` bytes together. Fewer come back where the data end, the room is
    used up or a string is not UTF-8: what is wrong stands at the place that is returned.
    ValueError for a place outside of the data.
    """
    return _core.read_texts(data, at, count, room)


def texts_of(strings: Iterable[str]) -> Texts:
    """Strings as Texts; ValueError for one that is no Unicode, because it holds half of a character.

    >>> texts_of(["a", "b"]).tolist()
    ['a', 'b']
    """
    encoded = [string.encode() for string in strings]
    data = b"".join(struct.pack("<Q", len(each)) + each for each in encoded)
    return read_texts(np.frombuffer(data, np.uint8), 0, len(encoded), len(data))[0]
