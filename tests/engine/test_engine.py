from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.engine.doubles import HashForward, Outcome, ReferenceForward, run
from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import ContextOverflow, NumericalError, RequestError, SettingsError, VitralError

WARM = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=7, max_tokens=12)
COLD = SamplingParams(max_tokens=12)


def requests(n: int) -> list[tuple[list[int], SamplingParams]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(0, 50, 9).tolist()
    return [(shared[: 3 + i % 7] + rng.integers(0, 50, 1 + i % 11).tolist(), WARM if i % 2 else COLD) for i in range(n)]


def alone(forward_type: type = HashForward) -> list[list[int]]:
    return [run(Engine(forward_type(), context_length=48), [request])[0].tokens for request in requests(16)]


@pytest.mark.parametrize("together", [2, 5, 16])
@pytest.mark.parametrize("step_tokens", [1, 7, 64])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_tokens_do_not_depend_on_the_batch_chunks_or_cache(together: int, step_tokens: int, prefix_cache: bool) -> None:
    expected = alone()
    engine = Engine(HashForward(), context_length=48, step_tokens=step_tokens, prefix_cache=prefix_cache)
    order = np.random.default_rng(together).permutation(16)
    for start in range(0, 16, together):
        some = order[start : start + together].tolist()
        got = run(engine, [requests(16)[i] for i in some])
        assert [outcome.tokens for outcome in got] == [expected[i] for i in some]


@pytest.mark.parametrize("family", ["llama-3.1", "mistral-window", "mixtral"])
def test_the_law_gives_the_same_bits_however_requests_are_mixed(family: str) -> None:
    asked = [(prompt, SamplingParams(max_tokens=4)) for prompt, _ in requests(3)]

    def logits(engine: Engine, together: bool) -> list[bytes]:
        seen: list[dict[int, bytes]] = [{} for _ in asked]
        for i, (prompt, params) in enumerate(asked):
            engine.add(prompt, params, on_logits=lambda p, row, i=i: seen[i].update({p: row.tobytes()}))
            while not together and not engine.idle:
                engine.step()
        while not engine.idle:
            engine.step()
        return [b"".join(rows[p] for p in sorted(rows)) for rows in seen]

    expected = logits(Engine(ReferenceForward(family), context_length=48), together=False)
    for step_tokens in (3, 64):
        assert logits(Engine(ReferenceForward(family), context_length=48, step_tokens=step_tokens), True) == expected


def test_requests_that_do_not_fit_together_are_put_back_and_give_the_same_tokens() -> None:
    expected = alone()
    forward = HashForward(n_pages=12)  # 48 positions: two or three requests
    got = run(Engine(forward, context_length=48), requests(16))
    assert [outcome.tokens for outcome in got] == expected


def test_a_prefix_found_in_the_cache_is_not_computed_again() -> None:
    forward = HashForward()
    engine = Engine(forward, context_length=48)
    prompt = list(range(20))
    first = run(engine, [(prompt, COLD)])[0]
    before = sum(forward.steps)
    second = run(engine, [(prompt, COLD)])[0]
    assert second.tokens == first.tokens
    assert first.end is not None and first.end.cached == 0
    assert second.end is not None and second.end.cached == 16  # full pages, less the token that must be computed
    assert sum(forward.steps) - before == 4 + 11


def test_another_salt_finds_nothing() -> None:
    engine = Engine(HashForward(), context_length=48)
    run(engine, [(list(range(20)), COLD)])
    request_id = engine.add(list(range(20)), COLD, salt=b"another tenant")
    ends = []
    while not engine.idle:
        ends += [event for event in engine.step() if isinstance(event, Finished)]
    assert [(end.request_id, end.cached) for end in ends] == [(request_id, 0)]


def test_a_nan_ends_the_request_that_has_it_and_no_other() -> None:
    forward = HashForward()
    forward.poison = 49
    healthy = ([1, 2, 3], SamplingParams(max_tokens=5, logit_bias={49: -np.inf}))
    expected = run(Engine(forward, context_length=48), [healthy])[0].tokens
    got = run(Engine(forward, context_length=48), [healthy, ([1, 49, 3], COLD), healthy])
    assert got[0].tokens == got[2].tokens == expected
    assert got[1].tokens == []
    assert got[1].end is not None and got[1].end.reason == "error"
    assert isinstance(got[1].end.error, NumericalError)
    assert "nan" in str(got[1].end.error)


def test_a_pass_that_fails_ends_the_request_that_causes_it_and_no_other() -> None:
    forward = HashForward()
    asked = (([1, 2, 3], COLD), ([4, 49], COLD), ([5, 6], WARM))
    expected = [run(Engine(forward, context_length=48), [asked[i]])[0].tokens for i in (0, 2)]
    forward.fail_on = 49
    forward.expected = lambda past: np.where(np.arange(50) == 49, -9, HashForward.expected(forward, past))  # type: ignore[method-assign]
    expected = [run(Engine(forward, context_length=48), [asked[i]])[0].tokens for i in (0, 2)]
    got = run(Engine(forward, context_length=48), asked)
    assert [got[0].tokens, got[2].tokens] == expected
    assert got[1].end is not None and isinstance(got[1].end.error, VitralError)
    assert "told to fail" in str(got[1].end.error)


def test_a_callback_that_fails_ends_its_request_alone() -> None:
    def fail(position: int, row: object) -> None:
        raise ValueError("mine")

    engine = Engine(HashForward(), context_length=48)
    bad = engine.add([1, 2], COLD, on_logits=fail)
    good = engine.add([1, 2], COLD)
    outcomes = {bad: Outcome(), good: Outcome()}
    while not engine.idle:
        for event in engine.step():
            outcomes[event.request_id].take(event)
    end = outcomes[bad].end
    assert end is not None and end.reason == "error" and "mine" in str(end.error)
    assert len(outcomes[good].tokens) == 12


def test_cancel_takes_effect_at_the_next_step() -> None:
    forward = HashForward()
    engine = Engine(forward, context_length=48)
    request_id = engine.add([1, 2, 3], COLD)
    other = engine.add([4, 5], COLD)
    engine.step()
    engine.cancel(request_id)
    computed = len(forward.steps)
    events = engine.step()
    assert events[0] == Finished(request_id, "cancelled", 0, None)
    assert [event.request_id for event in events[1:]] == [other]
    assert forward.steps[computed:] == [1]
    engine.cancel(request_id)  # late: nothing happens
    engine.cancel(other)
    assert engine.step() == [Finished(other, "cancelled", 0, None)]
    assert engine.idle


def test_a_request_may_be_cancelled_before_it_ever_ran() -> None:
    engine = Engine(HashForward(), context_length=48)
    request_id = engine.add([1], COLD)
    engine.cancel(request_id)
    assert engine.step() == [Finished(request_id, "cancelled", 0, None)]


def test_stop_tokens_end_the_answer_and_are_part_of_it() -> None:
    free = run(Engine(HashForward(), context_length=48), [([1, 2, 3], COLD)])[0]
    stop = free.tokens[5]
    params = SamplingParams(max_tokens=12, stop_ids=frozenset({stop}))
    got = run(Engine(HashForward(), context_length=48), [([1, 2, 3], params)])[0]
    assert got.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert got.end is not None and got.end.reason == "stop"


def test_without_max_tokens_the_context_is_filled() -> None:
    got = run(Engine(HashForward(), context_length=20), [([1, 2, 3], SamplingParams())])[0]
    assert len(got.tokens) == 17
    assert got.end is not None and got.end.reason == "length"


def test_no_answer_asked_for_only_scores() -> None:
    engine = Engine(HashForward(), context_length=20)
    nothing, scored = run(
        engine, [([1, 2], SamplingParams(max_tokens=0)), ([1, 2, 3], SamplingParams(max_tokens=0, prompt_logprobs=0))]
    )
    assert nothing.tokens == scored.tokens == []
    assert scored.prompt_scores is not None and [score.token for score in scored.prompt_scores] == [2, 3]


@pytest.mark.parametrize("step_tokens", [1, 5, 64])
def test_prompt_scores_are_those_of_the_teacher_forced_logits(step_tokens: int) -> None:
    forward = HashForward()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    engine = Engine(forward, context_length=48, step_tokens=step_tokens)
    run(engine, [(prompt, COLD)])  # fills the prefix cache, which must not hide logits
    got = run(engine, [(prompt, SamplingParams(max_tokens=2, prompt_logprobs=3, logprobs=2))])[0]
    assert got.prompt_scores is not None and len(got.prompt_scores) == len(prompt) - 1
    for i, score in enumerate(got.prompt_scores):
        logits = forward.expected(prompt[: i + 1]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert score.token == prompt[i + 1]
        assert score.logprob == pytest.approx(logprobs[prompt[i + 1]], abs=1e-12)
        assert [token for token, _ in score.top] == np.argsort(-logprobs)[:3].tolist()
    assert all(score is not None and score.token == token for token, score in zip(got.tokens, got.scores, strict=True))


def test_every_position_is_seen_once_even_when_put_back() -> None:
    forward = HashForward(n_pages=6)
    engine = Engine(forward, context_length=24)
    seen: dict[int, list[int]] = {}
    for prompt in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7] * 9):
        positions: list[int] = []
        request_id = engine.add(
            prompt, SamplingParams(max_tokens=14), on_logits=lambda p, row, to=positions: to.append(p)
        )
        seen[request_id] = positions
    while not engine.idle:
        engine.step()
    assert [positions == list(range(len(positions))) for positions in seen.values()] == [True] * 3
    assert [len(positions) for positions in seen.values()] == [18, 18, 22]


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], {}, RequestError, "no tokens"),
        ([50], {}, RequestError, "token id 50 does not exist; allowed: 0 to 49"),
        ([1], {"logit_bias": {99: 1.0}}, RequestError, "token id 99"),
        ([1] * 20, {}, ContextOverflow, "20 tokens; the context holds 20"),
        ([1] * 12, {"max_tokens": 9}, ContextOverflow, "12 tokens.*max_tokens 9.*at most 8"),
    ],
)
def test_what_cannot_be_served_is_refused(
    prompt: list[int], params: dict[str, object], error: type[Exception], says: str
) -> None:
    engine = Engine(HashForward(), context_length=20)
    with pytest.raises(error, match=says):
        engine.add(prompt, SamplingParams(**params))  # type: ignore[arg-type]
    assert engine.idle


def test_a_bias_that_forbids_everything_is_an_error() -> None:
    params = SamplingParams(logit_bias=dict.fromkeys(range(50), -np.inf))
    got = run(Engine(HashForward(), context_length=20), [([1], params)])[0]
    assert got.end is not None and isinstance(got.end.error, RequestError)


def test_a_cache_smaller_than_the_context_is_refused() -> None:
    with pytest.raises(SettingsError, match="holds 16"):
        Engine(HashForward(n_pages=4), context_length=17)


def test_threads_that_follow_their_answers_share_the_steps() -> None:
    expected = alone()
    forward = HashForward()
    engine = Engine(forward, context_length=48)
    tokens: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        prompt, params = requests(16)[i]
        with engine.answer(prompt, params) as answer:
            tokens[i] = [event.token for event in answer if isinstance(event, NewToken)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokens[i] for i in range(8)] == expected[:8]
    assert engine.idle


def test_closing_an_answer_cancels_it() -> None:
    engine = Engine(HashForward(), context_length=48)
    with engine.answer([1, 2], COLD) as answer:
        assert isinstance(next(answer), NewToken)
    assert not engine.idle
    engine.step()
    assert engine.idle
    assert list(answer) == []


def test_a_drawn_seed_is_reported_and_gives_the_answer_again() -> None:
    engine = Engine(HashForward(), context_length=48)
    warm = {"temperature": 1.5, "max_tokens": 12}
    with engine.answer([1, 2], SamplingParams(**warm)) as answer:  # type: ignore[arg-type]
        first = list(answer)
    with engine.answer([1, 2], SamplingParams(seed=answer.seed, **warm)) as again:  # type: ignore[arg-type]
        second = list(again)
    assert [e.token for e in first if isinstance(e, NewToken)] == [e.token for e in second if isinstance(e, NewToken)]


def test_on_choice_sees_the_logits_of_each_token_and_changes_none() -> None:
    seen: list[tuple[int, int]] = []
    engine = Engine(HashForward(), context_length=64)
    plain = run(engine, [([1, 2, 3], SamplingParams(max_tokens=5))])[0].tokens
    request = engine.add(
        [1, 2, 3],
        SamplingParams(max_tokens=5),
        on_choice=lambda position, row: seen.append((position, int(row.argmax()))),
    )
    while not engine.idle:
        engine.step()
    assert request == 1
    assert seen == list(zip(range(2, 7), plain, strict=True))


def test_on_hidden_sees_every_position_once_and_only_its_own_request() -> None:
    engine = Engine(HashForward(), context_length=64, step_tokens=4)
    seen: list[int] = []
    engine.add([5] * 9, SamplingParams(max_tokens=3))
    engine.add(list(range(1, 12)), SamplingParams(max_tokens=0), on_hidden=lambda position, row: seen.append(position))
    while not engine.idle:
        engine.step()
    assert seen == list(range(11))
