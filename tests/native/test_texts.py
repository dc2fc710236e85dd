"""Strings out of a stranger's bytes, beside a loop in Python."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitral.native import read_texts


def plainly(data: bytes, at: int, count: int, room: int) -> tuple[list[str], int]:
    found: list[str] = []
    while len(found) < count and len(data) - at >= 8:
        [length] = struct.unpack_from("<Q", data, at)
        text = data[at + 8 : at + 8 + length] if length < 1 << 62 else b""
        if len(text) != length or length > room:
            break
        try:
            found.append(text.decode())
        except UnicodeDecodeError:
            break
        at, room = at + 8 + length, room - length
    return found, at


TEXTS = st.lists(st.binary(max_size=5) | st.text(max_size=5).map(str.encode), max_size=6)


@given(TEXTS, st.binary(max_size=9), st.integers(0, 7), st.integers(0, 20), st.integers(0, 3))
def test_as_a_loop_in_python(texts: list[bytes], end: bytes, count: int, room: int, at: int) -> None:
    data = b"\0" * at + b"".join(struct.pack("<Q", len(text)) + text for text in texts) + end
    assert read_texts(np.frombuffer(data, np.uint8), at, count, room) == plainly(data, at, count, room)


@pytest.mark.parametrize("at", [-1, 9])
def test_a_place_outside_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        read_texts(np.zeros(8, np.uint8), at, 1, 10)
