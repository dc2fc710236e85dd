from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.engine.doubles import HashForward, run
from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.engine.speculative import PromptLookup
from vitral.model.law import F32

WARM = SamplingParams(temperature=0.3, seed=11, max_tokens=60, logprobs=2)
COLD = SamplingParams(max_tokens=60, logprobs=1)
PENALISED = SamplingParams(max_tokens=60, repetition_penalty=1.05, frequency_penalty=0.01)


class Parrot(HashForward):
    """What comes next depends on the last two tokens of a small vocabulary alone, so every answer soon goes round."""

    def __init__(self, n_pages: int = 64, page_size: int = 16) -> None:
        super().__init__(n_pages, page_size, vocab_size=9)

    def expected(self, past: Sequence[int]) -> F32:
        logits = super().expected(past[-2:])
        if self.poison in past:
            logits[:] = np.nan
        return logits


def engine(speculation: bool, forward: HashForward | None = None, **options: int) -> Engine:
    return Engine(forward or Parrot(), context_length=200, speculation=speculation, **options)


@pytest.mark.parametrize("params", [COLD, WARM, PENALISED], ids=["cold", "warm", "penalised"])
@pytest.mark.parametrize("together", [1, 3, 6])
@pytest.mark.parametrize("step_tokens", [2, 64])
def test_an_answer_has_the_same_tokens_and_scores_with_guesses_and_without(
    params: SamplingParams, together: int, step_tokens: int
) -> None:
    asked = [([i, 3, 1, 4, 1, 5, 3, 1], params) for i in range(together)]
    plain = run(engine(False, step_tokens=step_tokens), asked)
    guessing = run(engine(True, step_tokens=step_tokens), asked)
    assert [(o.tokens, o.scores) for o in guessing] == [(o.tokens, o.scores) for o in plain]


def test_guesses_save_steps_where_the_text_repeats() -> None:
    plain, guessing = Parrot(), Parrot()
    expected = run(engine(False, plain), [([1, 2, 3], COLD)])[0].tokens
    assert run(engine(True, guessing), [([1, 2, 3], COLD)])[0].tokens == expected
    assert len(plain.steps) == 60
    assert len(guessing.steps) < 40


def test_a_stop_token_inside_a_guess_ends_the_answer() -> None:
    tokens = run(engine(False), [([1, 2, 3], COLD)])[0].tokens
    stop = tokens[-1]
    params = SamplingParams(max_tokens=60, stop_ids=frozenset({stop}))
    asked = [([*tokens[:40], *([1, 2, 3])], params)]
    assert run(engine(True), asked)[0].tokens == run(engine(False), asked)[0].tokens


def test_logits_of_each_choice_are_the_same_bytes() -> None:
    def seen(speculation: bool) -> dict[int, bytes]:
        rows: dict[int, bytes] = {}
        e = engine(speculation)
        e.add([1, 2, 3], COLD, on_choice=lambda position, row: rows.update({position: row.tobytes()}))
        while not e.idle:
            e.step()
        return rows

    assert seen(True) == seen(False)
    assert sorted(seen(True)) == list(range(2, 62))


class Loop(Parrot):
    """0 1 2 0 1 2 ...; after an 8 the logits are not numbers."""

    def expected(self, past: Sequence[int]) -> F32:
        logits = np.zeros(9, np.float32)
        logits[(past[-1] + 1) % 3] = 1
        return logits if past[-1] != 8 else logits * np.float32(np.nan)


@pytest.mark.parametrize("fails", [False, True], ids=["not a number", "raises"])
def test_a_guess_that_breaks_the_model_harms_nobody(fails: bool) -> None:
    """8 is only ever guessed: it stands in the prompt behind what the answer repeats."""
    forward = Loop()
    e = engine(True, forward)
    answer = e.answer([0, 1, 2, 8, 0, 1], SamplingParams(max_tokens=12))
    tokens = [next(answer)]  # the prompt is read before the model is told to fail
    if fails:
        forward.fail_on = 8
    tokens += list(answer)
    assert [event.token for event in tokens if isinstance(event, NewToken)] == [2, 0, 1] * 4
    assert isinstance(tokens[-1], Finished) and tokens[-1].reason == "length"
    assert fails or forward.steps[1] > 1, "something was guessed"


def test_guessing_rests_where_it_does_not_pay() -> None:
    lookup = PromptLookup()
    ids = [1, 2, 3, 4] * 4
    for _ in range(8):
        assert lookup.guess(ids, 4)
        lookup.learn(0, len(ids))
    assert lookup.guess(ids, 4) == []
    assert lookup.guess(ids + [1, 2, 3, 4] * 16, 4) == [1, 2, 3, 4]


def test_the_latest_place_is_quoted_and_never_past_its_end() -> None:
    lookup = PromptLookup()
    assert lookup.guess([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 9) == [8, 1, 2, 3]
    assert lookup.guess([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3, 8], 2) == [1, 2]
    assert lookup.guess([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3, 8], 0) == []
