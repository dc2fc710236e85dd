"""Whole rounds with a real model: question, call, result, answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vitral
from vitral.engine.tool_parser import TextDelta
from vitral.errors import RequestError
from vitral.language_model import LanguageModel

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city today.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "kelvin"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "How warm is it in Lisbon? Use the tool."}]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[LanguageModel]:
    with vitral.load(smollm2, context_length=1024) as loaded:
        yield loaded


def test_a_round_of_call_result_and_answer(model: LanguageModel) -> None:
    first = model.generate(
        messages=QUESTION, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=80
    )
    assert first.conforms and first.text == ""
    call = first.tool_calls[0]
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    assert "<tools>" in model.tokenizer.decode(first.prompt_ids)
    function = {"name": call.name, "arguments": call.arguments}
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}
    second = model.generate(messages=[*QUESTION, said, result], tools=[WEATHER], max_tokens=40)
    text = model.tokenizer.decode(second.prompt_ids)
    told = json.dumps({"name": "get_weather", "arguments": json.loads(call.arguments)})
    assert f"<tool_call>\n{told}\n</tool_call>" in text
    assert '<tool_response>\n{"temperature": 21}\n</tool_response>' in text
    assert second.text or second.tool_calls


def test_the_same_request_gives_the_same_call_with_the_same_id(model: LanguageModel) -> None:
    asked: dict[str, Any] = {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "required", "seed": 5}
    calls = [model.generate(**asked, max_tokens=80, temperature=0.7).tool_calls for _ in range(2)]
    assert calls[0] == calls[1] != ()


def test_a_named_function_is_called_once_and_streams(model: LanguageModel) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    with model.stream(messages=QUESTION, tools=[WEATHER], tool_choice=named, max_tokens=80) as stream:
        deltas = list(stream.deltas())
    pieces = [delta.arguments for delta in deltas if not isinstance(delta, TextDelta)]
    assert len(pieces) > 3 and "".join(pieces) == stream.completion.tool_calls[0].arguments
    assert len(stream.completion.tool_calls) == 1


def test_a_call_cut_short_is_seen_as_such(model: LanguageModel) -> None:
    cut = model.generate(messages=QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=14)
    assert (cut.finish_reason, cut.conforms) == ("length", False)


def test_tools_that_are_not_to_be_called_are_not_told(model: LanguageModel) -> None:
    without = model.generate(messages=QUESTION, max_tokens=4)
    assert (
        model.generate(messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=4).prompt_ids
        == without.prompt_ids
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "Hi", "tools": [WEATHER]},
        {"messages": QUESTION, "tool_choice": "required"},
        {"messages": QUESTION, "tools": [WEATHER], "constraint": object()},
    ],
)
def test_what_does_not_go_together_is_refused(model: LanguageModel, asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        model.generate(**asked)
