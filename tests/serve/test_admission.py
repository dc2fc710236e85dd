"""Who gets in: counted from the door on, so that a crowd is refused before anything is prepared for it."""

from __future__ import annotations

import pytest

from vitral.errors import Overloaded
from vitral.serve.admission import Admission


def test_requests_that_are_being_prepared_count() -> None:
    admission = Admission(most_tokens=100, most_requests=2)
    with admission.enter(), admission.enter(), pytest.raises(Overloaded), admission.enter():
        raise AssertionError("a third one got in")
    with admission.enter():
        assert admission.entering == 1
    assert admission.entering == 0


def test_a_place_at_the_door_becomes_a_place_inside() -> None:
    admission = Admission(most_tokens=100, most_requests=1)
    with admission.enter(), admission.admit(10):
        assert (admission.entering, admission.requests) == (0, 1)
        with pytest.raises(Overloaded):
            admission.check()
    assert (admission.entering, admission.requests, admission.tokens) == (0, 0, 0)


def test_one_that_is_too_large_for_the_room_is_let_in_alone() -> None:
    admission = Admission(most_tokens=10, most_requests=1)
    with admission.enter(), admission.admit(1000, sequences=4):
        assert admission.requests == 4
