"""Schemas that installed packages ship, with real generations: every answer that comes to its end is valid."""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vitral
from tests.engine.doubles import HashForward
from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.engine import Engine
from vitral.engine.grammar import Constraint, Grammars
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import RequestError

END = 256
VOCABULARY = ByteVocabulary()
GRAMMARS = Grammars(VOCABULARY, 257)


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """Requests, responses and tools of the OpenAI and Anthropic APIs as their packages describe them."""
    pydantic = pytest.importorskip("pydantic")
    found: dict[str, dict[str, Any]] = {}
    for package in ("openai.types", "openai.types.chat", "anthropic.types"):
        module = pytest.importorskip(package)
        for name in sorted(dir(module)):
            kind = getattr(module, name)
            if inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[f"{package}.{name}"] = kind.model_json_schema()
    return found


@cache
def compiled() -> dict[str, Constraint]:
    served = {}
    for name, schema in schemas().items():
        with contextlib.suppress(RequestError):
            served[name] = Constraint.json_schema(schema)
    return served


def test_two_hundred_schemas_of_installed_packages_are_served_and_never_left() -> None:
    served = compiled()
    if len(schemas()) < 200:
        pytest.skip(f"installed packages ship {len(schemas())} schemas; 200 are wanted")
    assert len(served) >= 200
    ends = {ord(sign): bias for sign, bias in (("}", 5.0), ("]", 5.0), ('"', 4.0), (" ", -4.0), ("\n", -6.0))}
    params = SamplingParams(
        stop_ids=frozenset({END}), max_tokens=150, temperature=1.0, seed=11, logit_bias={**ends, END: 9.0}
    )
    engine = Engine(HashForward(n_pages=16, page_size=16, vocab_size=257), context_length=200)
    complete = 0
    for name, constraint in random.Random(1).sample(sorted(served.items()), 200):
        events = list(engine.answer([1], params, constraint=GRAMMARS.start(constraint, stop_ids=[END])))
        ids = [event.token for event in events if isinstance(event, NewToken)]
        end = events[-1]
        assert isinstance(end, Finished) and end.error is None, (name, end)
        text = VOCABULARY.decode([id for id in ids if id != END])
        if end.conforms:
            complete += 1
            jsonschema.validate(json.loads(text), schemas()[name])
        else:
            assert end.reason == "length", name
    assert complete >= 50


def test_a_real_model_fills_real_schemas(smollm2: Path) -> None:
    served = compiled()
    names = [name for name in sorted(served) if len(json.dumps(schemas()[name])) < 900][:8]
    with vitral.load(smollm2, context_length=512) as model:
        complete = 0
        for name in names:
            asked = [{"role": "user", "content": f"Give a short example of {name.rpartition('.')[2]} as JSON."}]
            answer = model.generate(messages=asked, constraint=served[name], max_tokens=96)
            if answer.conforms:
                complete += 1
                jsonschema.validate(json.loads(answer.text), schemas()[name])
            else:
                assert answer.finish_reason == "length"
    assert complete >= 1
