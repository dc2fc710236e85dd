from __future__ import annotations

import math

import pytest

from vitral.engine.request import Request, SamplingParams, State
from vitral.errors import RequestError


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, "temperature is -0.1; allowed: a number from 0 to 100"),
        ("temperature", math.nan, "nan"),
        ("temperature", "hot", "'hot'"),
        ("top_k", -1, "whole number from 0"),
        ("top_k", 1.5, "1.5"),
        ("top_p", 0.0, "use temperature 0"),
        ("top_p", 1.1, "from 0 to 1"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0.0, "from 0.01"),
        ("presence_penalty", 3, "from -2 to 2"),
        ("frequency_penalty", -3, "from -2 to 2"),
        ("logit_bias", {1: math.inf}, "minus infinity"),
        ("logit_bias", {-1: 0.0}, "-1"),
        ("seed", -1, "from 0 to 18446744073709551615"),
        ("seed", 2**64, "18446744073709551616"),
        ("seed", True, "True"),
        ("max_tokens", -1, "from 0"),
        ("logprobs", 21, "from 0 to 20"),
        ("prompt_logprobs", 21, "from 0 to 20"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(field: str, value: object, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert field in str(caught.value) and says in str(caught.value)


def test_a_request_tells_its_state() -> None:
    request = Request(0, [1, 2, 3], SamplingParams(), 4)
    assert request.state is State.WAITING
    request.running = True
    assert request.state is State.PREFILL
    request.computed = 3
    request.ids.append(9)
    assert request.state is State.DECODE
    request.finished = "stop"
    assert request.state is State.FINISHED


def test_a_seed_is_drawn_when_none_is_given() -> None:
    assert Request(0, [1], SamplingParams(seed=5), 1).seed == 5
    assert len({Request(0, [1], SamplingParams(), 1).seed for _ in range(4)}) == 4
