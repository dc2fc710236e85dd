from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.engine.doubles import HashForward
from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.engine import Engine
from vitral.engine.grammar import Constraint, Grammars
from vitral.engine.request import Event, Finished, NewToken, SamplingParams
from vitral.errors import RequestError
from vitral.tokenizer.stream import SpaceRule

END = 256
PIECES = [b" {", b'{"', b'": "', b"name", b'"}', b"tr", b"true", b"\xc3", b"\xa9", b" yes", b"12", b"a", b""]
STOPS = SamplingParams(stop_ids=frozenset({END}), max_tokens=60, temperature=1.0, seed=1)


def vocabulary(space: SpaceRule = SpaceRule.NEVER) -> ByteVocabulary:
    return ByteVocabulary(PIECES, [b"<tool>", b"<pad>"], space)


def engine_of(tokens: ByteVocabulary, padding: int = 0) -> Engine:
    return Engine(HashForward(vocab_size=tokens.vocab_size + padding), context_length=200)


def run(engine: Engine, grammars: Grammars, constraint: Constraint, params: SamplingParams = STOPS) -> list[Event]:
    return list(engine.answer([1, 2], params, constraint=grammars.start(constraint, stop_ids=params.stop_ids)))


def ids_of(events: list[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, NewToken)]


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("space", list(SpaceRule))
@pytest.mark.parametrize("seed", range(4))
def test_random_models_cannot_leave_the_schema(space: SpaceRule, seed: int) -> None:
    tokens = vocabulary(space)
    grammars = Grammars(tokens, tokens.vocab_size + 3)
    params = SamplingParams(stop_ids=frozenset({END}), max_tokens=150, temperature=1.0, seed=seed)
    events = run(engine_of(tokens, 3), grammars, Constraint.json_schema(SCHEMA), params)
    ids = ids_of(events)
    assert not set(ids) & (tokens.special_ids - {END}) and max(ids) < tokens.vocab_size
    text = tokens.decode([id for id in ids if id != END])
    if end_of(events).reason == "stop":
        assert end_of(events).conforms is True
        jsonschema.validate(json.loads(text), SCHEMA)
    else:
        assert (end_of(events).reason, end_of(events).conforms, len(ids)) == ("length", False, 150)


@pytest.mark.parametrize(
    ("constraint", "texts"),
    [
        (Constraint.choice(["yes", "no", 'a "b"\n']), {"yes", "no", 'a "b"\n'}),
        (Constraint.regex("(ab|c){2}"), {"abab", "abc", "cab", "cc"}),
        (Constraint.grammar('start: "x" tail\ntail: "1" | "2" "1"?'), {"x1", "x2", "x21", "x22"}),
        (Constraint.grammar('root ::= "a" | "b" [0-1]'), {"a", "b0", "b1"}),
        (Constraint.json_schema({"enum": [1, "two", None]}), {"1", '"two"', "null"}),
        (Constraint.json_schema({"const": "é"}), {'"é"'}),
    ],
)
@pytest.mark.parametrize("space", [SpaceRule.NEVER, SpaceRule.START])
def test_every_kind_of_constraint_gives_its_texts_and_no_others(
    constraint: Constraint, texts: set[str], space: SpaceRule
) -> None:
    tokens = vocabulary(space)
    grammars, engine = Grammars(tokens, tokens.vocab_size), engine_of(tokens)
    found = set()
    for seed in range(40):
        params = SamplingParams(stop_ids=frozenset({END}), max_tokens=60, temperature=5.0, seed=seed)
        events = run(engine, grammars, constraint, params)
        if end_of(events).conforms:
            found.add(tokens.decode([id for id in ids_of(events) if id != END]))
    prefixes = {text for text in found if any(other.startswith(text) for other in texts)}
    assert found <= texts and len(prefixes) >= min(2, len(texts))


def test_the_answer_does_not_depend_on_who_else_runs() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    constraint = Constraint.json_schema(SCHEMA)
    params = [SamplingParams(stop_ids=frozenset({END}), max_tokens=40, temperature=0.9, seed=n) for n in range(6)]
    alone = [ids_of(run(engine_of(tokens), grammars, constraint, one)) for one in params]
    engine = engine_of(tokens)
    ids = [
        engine.add([1, 2], one, constraint=grammars.start(constraint, stop_ids=one.stop_ids) if n % 2 == 0 else None)
        for n, one in enumerate(params)
    ]
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    for n in range(0, 6, 2):
        assert [e.token for e in events if isinstance(e, NewToken) and e.request_id == ids[n]] == alone[n]


def test_a_preempted_answer_goes_on_where_it_was() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    constraint = Constraint.regex("[a-z]{30}")
    params = [SamplingParams(stop_ids=frozenset({END}), temperature=1.0, seed=n, max_tokens=30) for n in range(4)]
    alone = [ids_of(run(engine_of(tokens), grammars, constraint, one)) for one in params]
    engine = Engine(HashForward(n_pages=10, vocab_size=tokens.vocab_size), context_length=40)
    ids = [engine.add([1, 2], one, constraint=grammars.start(constraint, stop_ids=one.stop_ids)) for one in params]
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    got = [[e.token for e in events if isinstance(e, NewToken) and e.request_id == id] for id in ids]
    assert got == alone


def test_log_probabilities_are_those_of_the_model_without_the_constraint() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    params = SamplingParams(stop_ids=frozenset({END}), max_tokens=5, logprobs=2)
    events = run(engine_of(tokens), grammars, Constraint.regex("[ab]{5}"), params)
    forward, past = HashForward(vocab_size=tokens.vocab_size), [1, 2]
    for event in events:
        if isinstance(event, NewToken):
            logits = forward.expected(past).astype(np.float64)
            assert event.score is not None
            expected = logits[event.token] - np.log(np.exp(logits).sum())
            assert event.score.logprob == pytest.approx(expected, abs=1e-5)
            assert event.score.top[0][0] == int(np.argmax(logits))
            past.append(event.token)


def test_penalties_and_bias_come_after_the_mask_and_cannot_lift_it() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    params = SamplingParams(
        stop_ids=frozenset({END}), max_tokens=9, logit_bias={ord("z"): 100.0, END: 50.0}, presence_penalty=2.0
    )
    ids = ids_of(run(engine_of(tokens), grammars, Constraint.regex("[ab]{4}"), params))
    assert len(ids) == 4 and set(ids) <= {ord("a"), ord("b"), 257 + PIECES.index(b"a")}


def test_bias_against_all_that_the_constraint_allows_is_an_error() -> None:
    tokens = vocabulary()
    params = SamplingParams(stop_ids=frozenset({END}), logit_bias={ord("q"): -np.inf})
    events = run(engine_of(tokens), Grammars(tokens, tokens.vocab_size), Constraint.regex("q"), params)
    assert isinstance(end_of(events).error, RequestError)


def test_the_answer_ends_where_nothing_can_follow_also_without_stop_tokens() -> None:
    tokens = vocabulary()
    params = SamplingParams(max_tokens=20)
    grammars = Grammars(tokens, tokens.vocab_size)
    events = run(engine_of(tokens), grammars, Constraint.regex("ab"), params)
    assert (tokens.decode(ids_of(events)), end_of(events).reason, end_of(events).conforms) == ("ab", "stop", True)
    # one that could go on for ever never writes the stop token that it was not given
    events = run(engine_of(tokens), grammars, Constraint.regex("[ab]*"), params)
    assert END not in ids_of(events) and (end_of(events).reason, end_of(events).conforms) == ("length", True)


def test_control_tokens_never_come_out_of_a_text_constraint() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    for constraint in (Constraint.regex("(.|\n)*"), Constraint.grammar(f"start: <[0-{tokens.vocab_size - 1}]> <[*]>")):
        allowed = grammars.start(constraint, stop_ids=[END]).allowed()
        assert not allowed[[id for id in tokens.special_ids if id != END]].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constraint.regex("(a"),
        lambda: Constraint.regex("\ud800"),
        lambda: Constraint.regex(3),  # type: ignore[arg-type]
        lambda: Constraint.grammar("start: missing"),
        lambda: Grammars(vocabulary(), 400).start(Constraint.grammar("start: <nothing>")),
        lambda: Constraint.grammar('start: a\na: %json {"not": {}}'),
        lambda: Constraint.choice([]),
        lambda: Constraint.choice([""]),
        lambda: Constraint.regex("a" * (1 << 21)),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused_in_one_line(make: Any) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_compiled_constraint_serves_again_and_answers_do_not_share_state() -> None:
    tokens = vocabulary()
    grammars = Grammars(tokens, tokens.vocab_size)
    constraint = Constraint.regex("ab")
    first, second = grammars.start(constraint), grammars.start(constraint)
    first.take(ord("a"))
    assert np.flatnonzero(first.allowed()).tolist() == [ord("b")]
    assert ord("a") in np.flatnonzero(second.allowed())
    with pytest.raises(RequestError, match="breaks the constraint"):
        second.take(ord("b"))


def test_equal_constraints_have_equal_digests() -> None:
    assert Constraint.json_schema(SCHEMA).digest == Constraint.json_schema(dict(SCHEMA)).digest
    assert Constraint.json_schema(SCHEMA).digest != Constraint.json_object().digest
