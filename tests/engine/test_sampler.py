from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitral.engine import sampler
from vitral.engine.request import Request, SamplingParams

LOGITS = hnp.arrays(np.float32, st.integers(2, 400), elements=st.floats(-30, 30, width=32))


@given(hnp.arrays(np.float64, 50, elements=st.floats(-720, 0)))
def test_the_exponential_is_right_to_a_few_units(x: np.ndarray) -> None:
    wanted = np.where(x < -700, 0.0, np.exp(x))
    np.testing.assert_allclose(sampler._exp(x), wanted, rtol=4e-16, atol=0)


def test_the_exponential_has_these_bits_everywhere() -> None:
    values = sampler._exp(np.array([0.0, -0.1, -1.0, -10.5, -300.25, -700.0, -np.inf]))
    assert [value.hex() for value in values.tolist()] == EXP_BITS


EXP_BITS = [
    "0x1.0000000000000p+0",
    "0x1.cf46d99d52b3ap-1",
    "0x1.78b56362cef38p-2",
    "0x1.cdfc263f6a0bap-16",
    "0x1.c758233102acep-434",
    "0x1.14f2b0fb9307fp-1010",
    "0x0.0p+0",
]


@given(LOGITS, st.integers(1, 60))
def test_best_is_a_stable_sort(x: np.ndarray, n: int) -> None:
    assert sampler.best(x, n).tolist() == np.argsort(-x, kind="stable")[:n].tolist()


def plain_draw(z: np.ndarray, params: SamplingParams, luck: float) -> int:
    """The definition, one candidate at a time."""
    weights = sampler._exp((z - z.max()) / params.temperature)
    order = [int(i) for i in np.argsort(-z, kind="stable") if weights[i] >= params.min_p]
    order = order[: params.top_k or None]
    total = math.fsum(weights[i] for i in order)
    if params.top_p < 1:
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += weights[i]
            if mass >= params.top_p * total:
                break
        order, total = kept, mass
    mass = 0.0
    for i in order:
        mass += weights[i]
        if mass > luck * total:
            return i
    return order[-1]


@given(
    LOGITS,
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 5, 100]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.floats(0.001, 0.999),
)
def test_draw_is_its_plain_definition(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, luck: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    z = logits.astype(np.float64)
    drawn = sampler.draw(z, params, luck)
    near = {plain_draw(z, params, luck + shift) for shift in (-1e-9, 0.0, 1e-9)}  # a border may round either way
    near |= {
        plain_draw(
            z, SamplingParams(temperature=temperature, top_k=top_k, top_p=min(1.0, top_p * (1 + e)), min_p=min_p), luck
        )
        for e in (-1e-9, 1e-9)
        if top_p < 1
    }
    assert drawn in near


def test_the_frequencies_are_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    z = np.log(probabilities)
    params = SamplingParams(temperature=1.0)
    n = 20_000
    counts = np.bincount([sampler.draw(z, params, sampler.uniform(9, i)) for i in range(n)], minlength=4)
    deviation = np.sqrt(n * probabilities * (1 - probabilities))
    assert (np.abs(counts - n * probabilities) < 4 * deviation).all()


def test_random_numbers_belong_to_seed_and_position_for_ever() -> None:
    assert [
        sampler.uniform(seed, position).hex() for seed, position in ((0, 0), (1, 0), (0, 1), (2**64 - 1, 9))
    ] == UNIFORM_BITS


UNIFORM_BITS = ["0x1.7a5d3204726c0p-7", "0x1.36da89edd58a0p-2", "0x1.0137e64510730p-1", "0x1.2f41835f27204p-1"]


def test_every_bit_of_the_seed_counts() -> None:
    assert len({sampler.uniform(seed, 0) for seed in (0, 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)}) == 6


def test_temperature_0_takes_the_lowest_of_equals() -> None:
    request = Request(0, [0], SamplingParams(), 1)
    logits = np.array([1, 3, 3, 2], np.float32)
    assert sampler.choose(request, logits, int(np.argmax(logits))) == 1


def test_a_forbidden_token_is_never_drawn() -> None:
    for temperature in (0.0, 1.0, 100.0):
        params = SamplingParams(temperature=temperature, logit_bias={2: -math.inf}, seed=1)
        for position in range(1, 40):
            request = Request(0, [0] * position, params, 1)
            assert sampler.choose(request, np.array([0, 0, 9], np.float32), 2) != 2


def test_penalties_by_hand() -> None:
    params = SamplingParams(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={0: 1.0, 3: -2.0}
    )
    logits = np.array([1.0, 2.0, -1.0, 4.0, 5.0], np.float32)
    #  0: in the prompt (1 + 1) / 2; 2: three times in the answer -1 * 2 - 0.5 - 0.75; 3: only biased
    adjusted = sampler.adjust(logits, params, [0, 2, 2, 2], {2: 3})
    assert adjusted.tolist() == [1.0, 2.0, -3.25, 2.0, 5.0]


@given(LOGITS, st.integers(0, 20))
def test_log_probabilities_are_those_of_the_softmax(logits: np.ndarray, n: int) -> None:
    top = int(np.argmax(logits))
    score = sampler.score(logits, top, 1, n)
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert score.logprob == pytest.approx(logprobs[1], abs=1e-12)
    assert [token for token, _ in score.top] == np.argsort(-wide, kind="stable")[:n].tolist()
    if n >= len(logits):
        assert math.fsum(math.exp(logprob) for _, logprob in score.top) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_without_a_finite_largest_are_an_error(bad: float) -> None:
    logits = np.array([-np.inf, bad, -np.inf], np.float32)
    assert sampler.not_finite(logits, int(np.argmax(logits)), 3) is not None
    logits[0] = 1.0
    assert (sampler.not_finite(logits, int(np.argmax(logits)), 3) is None) == (bad == -np.inf)
