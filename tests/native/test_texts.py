"""Strings out of a stranger's bytes, beside a loop in Python."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitral.native import Merges, read_texts, texts_of


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
def test_as_a_loop_in_python(texts: list[bytes], tail: bytes, count: int, room: int, at: int) -> None:
    data = b"\0" * at + b"".join(struct.pack("<Q", len(text)) + text for text in texts) + tail
    found, end = read_texts(np.frombuffer(data, np.uint8), at, count, room)
    assert (found.tolist(), end) == plainly(data, at, count, room)


@pytest.mark.parametrize("at", [-1, 9])
def test_a_place_outside_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        read_texts(np.zeros(8, np.uint8), at, 1, 10)


@pytest.mark.parametrize("prefix", [b"", b"a"])
def test_utf8_is_what_python_takes_for_it(prefix: bytes) -> None:
    leads = [
        *range(0x7E, 0x82),
        *range(0xBE, 0xC4),
        0xDF,
        0xE0,
        0xE1,
        0xEC,
        0xED,
        0xEE,
        0xEF,
        0xF0,
        0xF1,
        0xF4,
        0xF5,
        0xFF,
    ]
    follow = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    for lead in leads:
        for rest in [
            (),
            *((a,) for a in follow),
            *((a, b) for a in follow for b in follow),
            *((a, 0x80, 0x80) for a in follow),
        ]:
            text = prefix + bytes([lead, *rest])
            data = struct.pack("<Q", len(text)) + text
            found, end = read_texts(np.frombuffer(data, np.uint8), 0, 1, 99)
            assert (found.tolist(), end) == plainly(data, 0, 1, 99)


def test_texts_are_a_sequence() -> None:
    texts = texts_of(["a", "\u0120b", ""])
    assert (len(texts), texts[1], texts[-1], list(texts), texts.longest) == (3, "\u0120b", "", ["a", "\u0120b", ""], 3)
    assert texts == ["a", "\u0120b", ""] and texts == texts_of(iter(texts)) and texts != texts_of(["a"])
    with pytest.raises(IndexError):
        texts[3]


def merges(pieces: list[str], pairs: list[str]) -> Merges:
    return Merges(texts_of(pieces), texts_of(pairs))


def test_what_is_wrong_with_merges_is_named() -> None:
    right = merges(["a", "b", "ab"], ["a b"])
    assert (right.twice, right.odd, right.unknown) == (-1, -1, None)
    assert merges(["b", "a", "b", "a"], []).twice == 0
    assert [merges(["a"], [text]).odd for text in ("aa", "a a a", "")] == [0, 0, 0]
    assert merges(["a", "b", "ab"], ["a b", "a c"]).unknown == "c"
    assert merges(["a", "b"], ["a b"]).unknown == "ab"
    assert merges(["a"], [" a"]).unknown == ""


def test_parts_of_a_text_and_the_merges_among_them() -> None:
    some = merges(["a", "b", "c", "ab", "bc", "abc", "\u0120", "\u0120a"], ["a b", "b c", "ab c", "a bc", "\u0120 a"])
    assert some.within("\u0120ab") == (
        {"\u0120": 6, "\u0120a": 7, "a": 0, "ab": 3, "b": 1},
        [("a", "b"), ("\u0120", "a")],
    )
    assert some.within("") == ({}, [])
