from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitral.completion import StopStrings
from vitral.errors import RequestError

TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete ends the text; the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(TEXT, STOPS, st.lists(st.integers(0, 30)))
def test_text_ends_at_the_first_stop_however_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    filter_ = StopStrings(stops)
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    out = ""
    for start, end in itertools.pairwise(places):
        out += filter_.push(text[start:end])
        wanted, stopped = by_definition(text, stops)
        assert wanted.startswith(out), "a part of a stop string leaked"
    if not filter_.stopped:
        out += filter_.finish()
    assert (out, filter_.stopped) == (wanted, stopped) if len(places) > 1 else out == text


@given(TEXT, st.text("cd", min_size=1, max_size=4))
def test_text_is_held_back_only_while_it_may_be_a_stop(text: str, stop: str) -> None:
    assert StopStrings([stop]).push(text) == text


@pytest.mark.parametrize("stops", [[""], ["x" * 1025], ["x"] * 65, [3]])
def test_stops_that_cannot_be_are_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="stop has"):
        StopStrings(stops)
