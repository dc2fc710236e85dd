from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from tests.engine.doubles import HashForward
from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.engine import Engine
from vitral.engine.grammar import Grammars
from vitral.engine.request import NewToken, SamplingParams
from vitral.engine.tool_parser import Delta, TextDelta, ToolCall, ToolParser, messages_for_template
from vitral.engine.tools import CallFormat, call_format, call_id, tool_constraint, tools_from
from vitral.errors import RequestError
from vitral.tokenizer.special import Special, Specials

END = 256
FORMATS: list[CallFormat] = ["hermes", "mistral", "mistral_args", "llama3", "pythonic"]
CONTROLS = {
    "hermes": [],
    "mistral": ["[TOOL_CALLS]"],
    "mistral_args": ["[TOOL_CALLS]", "[ARGS]"],
    "llama3": ["<|start_header_id|>", "<|python_tag|>"],
    "pythonic": ["<|start_header_id|>", "<|python_tag|>"],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 4, "pattern": '^[a-z"\\\\,)}=]*$'},
                    "days": {"type": "integer", "minimum": 0, "maximum": 20},
                    "more": {"$ref": "#/$defs/more"},
                },
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"more": {"type": "array", "items": {"enum": [True, None, {"a": "]"}]}, "maxItems": 2}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {tool.name: tool.parameters for tool in tools_from(TOOLS)}


class ToolVocabulary(ByteVocabulary):
    def __init__(self, controls: Sequence[str]) -> None:
        super().__init__([], [control.encode() for control in controls])
        specials = [Special(257 + place, text) for place, text in enumerate(controls)]
        self.specials = Specials([Special(END, "<end>"), *specials])


def write(format: CallFormat, choice: Any, seed: int, *, parallel: bool = True) -> tuple[str, bool]:
    """An answer of a random model under the constraint, and whether it came to its end."""
    vocabulary = ToolVocabulary(CONTROLS[format])
    constraint = tool_constraint(vocabulary, format, tools_from(TOOLS), choice, parallel=parallel)  # type: ignore[arg-type]
    assert constraint is not None
    params = SamplingParams(
        stop_ids=frozenset({END}),
        max_tokens=400,
        temperature=3.0,
        seed=seed,
        logit_bias={END: 4.0, 257: 4.0, ord("<"): 3.0},
    )
    engine = Engine(HashForward(n_pages=150, vocab_size=vocabulary.vocab_size + 2), context_length=500)
    matcher = Grammars(vocabulary, vocabulary.vocab_size + 2).start(constraint, stop_ids=[END])
    events = list(engine.answer([1], params, constraint=matcher))
    ids = [event.token for event in events if isinstance(event, NewToken)]
    assert not set(ids) & (vocabulary.special_ids - {END} - constraint.control_ids)
    return vocabulary.decode([id for id in ids if id != END]), matcher.complete


def read(format: CallFormat, text: str, size: int) -> tuple[str, list[ToolCall], list[Delta]]:
    parser = ToolParser(format, lambda index: call_id(format, [1], 2, index))
    deltas: list[Delta] = []
    for start in range(0, len(text), size):
        deltas += parser.push(text[start : start + size])
    deltas += parser.finish()
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), parser.calls, deltas


def check(format: CallFormat, text: str) -> list[ToolCall]:
    said, calls, _ = read(format, text, len(text) or 1)
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    for size in (1, 3, 7):
        again, same, deltas = read(format, text, size)
        assert (again, same) == (said, calls)
        for index, call in enumerate(calls):
            mine = [delta for delta in deltas if not isinstance(delta, TextDelta) and delta.index == index]
            assert "".join(delta.arguments for delta in mine) == call.arguments
            assert (mine[0].id, mine[0].name) == (call.id, call.name)
    return calls


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(5))
def test_what_a_random_model_writes_parses_into_calls_that_obey_their_schemas(format: CallFormat, seed: int) -> None:
    text, complete = write(format, "required", seed)
    if complete:
        assert len(check(format, text)) >= 1
    text, complete = write(format, "auto", seed)
    if complete:
        check(format, text)
    text, complete = write(format, {"type": "function", "function": {"name": "now"}}, seed)
    assert complete
    assert [call.name for call in check(format, text)] == ["now"]
    text, complete = write(format, "required", seed, parallel=False)
    if complete:
        assert len(check(format, text)) == 1


WRITTEN: dict[CallFormat, str] = {
    "hermes": 'Let me see. <tool_call>\n{"name": "get_weather", "arguments": {"city": "ab", "days": 3}}\n</tool_call>'
    '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "mistral": 'Let me see. [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "ab", "days": 3}}, '
    '{"name": "now", "arguments": {}}]',
    "mistral_args": 'Let me see. [TOOL_CALLS]get_weather[ARGS]{"city": "ab", "days": 3}[TOOL_CALLS]now[ARGS]{}',
    "llama3": '<|python_tag|>{"name": "get_weather", "parameters": {"city": "ab", "days": 3}}',
    "pythonic": '[get_weather(city="ab", days=3), now()]',
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_calls_as_models_are_trained_to_write_them_are_read(format: CallFormat, size: int) -> None:
    said, calls, _ = read(format, WRITTEN[format], size)
    assert said == ("" if format in ("llama3", "pythonic") else "Let me see. ")
    assert [call.name for call in calls] == (["get_weather"] if format == "llama3" else ["get_weather", "now"])
    assert json.loads(calls[0].arguments) == {"city": "ab", "days": 3}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", ["", "Hello", "a < b <tool", "[TOOL", "x <|python", " 1 {}", "<tool_cal <tool_calk>"])
def test_text_without_a_call_comes_out_whole_and_no_marker_leaks(format: CallFormat, text: str) -> None:
    for size in (1, 2, 100):
        said, calls, _ = read(format, text, size)
        assert (said, calls) == ("" if format == "pythonic" and text[:1] == "[" else text, [])
    said, _, deltas = read(format, WRITTEN[format], 1)
    assert not any(mark in said for mark in ("tool_call", "TOOL", "python_tag", "<", "["))


def test_arguments_stream_as_they_come() -> None:
    parser = ToolParser("hermes", str)
    parser.push('<tool_call>\n{"name": "now", "arguments": {"city": "')
    assert [delta.arguments for delta in parser.push("Li") if not isinstance(delta, TextDelta)] == ["Li"]
    assert parser.calls == [ToolCall("0", "now", '{"city": "Li')]


def test_ids_of_calls_follow_from_prompt_seed_and_place() -> None:
    assert call_id("mistral", [1, 2], 3, 0) == call_id("mistral", [1, 2], 3, 0)
    assert len({call_id("hermes", ids, seed, n) for ids in ([1], [2]) for seed in (1, 2) for n in (0, 1)}) == 8
    assert len(call_id("mistral", [1], 2, 0)) == 9 and call_id("mistral", [1], 2, 0).isalnum()


def tokenizer_like(controls: Sequence[str], template: str | None) -> Any:
    specials = Specials([Special(place, text) for place, text in enumerate(controls)])
    templates = {} if template is None else {"default": template}
    return SimpleNamespace(specials=specials, templates=templates, chat_format=None)


@pytest.mark.parametrize(
    ("controls", "template", "expected"),
    [
        (["<|im_start|>", "<|im_end|>"], None, ("hermes", None)),
        (["<|im_start|>", "<|im_end|>"], "{{ messages }}", ("hermes", "chatml")),
        (["[INST]", "[/INST]", "[TOOL_CALLS]"], None, ("mistral", None)),
        (["[INST]", "[TOOL_CALLS]", "[ARGS]"], "{{ tools }}[TOOL_CALLS]f[ARGS]", ("mistral_args", None)),
        (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], None, ("llama3", None)),
        (["<|start_header_id|>"], "{{ tools }} [func_name1(params_name1=params_value1)]", ("pythonic", None)),
        (["<|start_header_id|>", "<tool_call>"], "{{ tools }}<tool_call>", ("hermes", None)),
    ],
)
def test_the_format_is_told_from_template_and_control_tokens(controls: Any, template: Any, expected: Any) -> None:
    assert call_format(tokenizer_like(controls, template)) == expected


@pytest.mark.parametrize("template", ["{{ messages }}", "{{ tools }}", None])
def test_a_model_without_a_format_for_calls_refuses_tools(template: str | None) -> None:
    with pytest.raises(RequestError, match="tools"):
        call_format(tokenizer_like(["<s>"], template))


@pytest.mark.parametrize(
    ("tools", "named"),
    [
        ([], "0 tools"),
        ([{"type": "web_search"}], "tools\\[0\\]"),
        ([{"type": "function", "function": {"name": "a b"}}], "'a b'"),
        ([TOOLS[1], TOOLS[1]], "two tools"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}], "object"),
        ([TOOLS[1]] * 200, "200"),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        tools_from(tools)


@pytest.mark.parametrize("choice", ["maybe", {"type": "function", "function": {"name": "nobody"}}, {}, {"type": "x"}])
def test_a_choice_that_does_not_exist_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError, match="tool_choice"):
        tool_constraint(ToolVocabulary([]), "hermes", tools_from(TOOLS), choice)  # type: ignore[arg-type]


def test_a_keyword_in_a_tool_that_cannot_be_honoured_is_refused() -> None:
    bad = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}]
    for format in FORMATS:
        with pytest.raises(RequestError, match="not"):
            tool_constraint(ToolVocabulary(CONTROLS[format]), format, tools_from(bad), "auto")  # type: ignore[arg-type]


def test_arguments_of_earlier_calls_become_objects_for_templates() -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}]}
    [out] = messages_for_template([message])
    assert out["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    for arguments in ("{", "[1]", 3):
        broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        with pytest.raises(RequestError, match="arguments"):
            messages_for_template([broken])
