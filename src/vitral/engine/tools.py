"""Tool calls: how a model was trained to write them, and a constraint under which it can write no other.

| format | a call | read by |
|---|---|---|
| `hermes` | `<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>`, several after each other | Hermes 2 and 3, ChatML models |
| `mistral` | `[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]` | Mistral v3, v7 |
| `mistral_args` | `[TOOL_CALLS]f[ARGS]{...}`, several after each other | Mistral v11, v13 |
| `llama3` | `{"name": "f", "parameters": {...}}`, after `<|python_tag|>` or without; one | Llama 3.1, 3.3 |
| `pythonic` | `[f(a=1, b="x"), ...]`, the values in JSON | Llama 3.2 |
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitral.engine.grammar import Constraint, encoded, json_source, quoted
from vitral.errors import RequestError, TemplateError
from vitral.tokenizer.chat import built_in, choose_template
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CallFormat",
    "Tool",
    "ToolChoice",
    "ToolUse",
    "call_id",
    "call_format",
    "tool_constraint",
    "tools_from",
    "use_tools",
]

CallFormat = Literal["hermes", "mistral", "mistral_args", "llama3", "pythonic"]
ToolChoice = str | Mapping[str, Any]
"""`"none"`, `"auto"`, `"required"`, or `{"type": "function", "function": {"name": ...}}`."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MOST_TOOLS = 128
_PYTHONIC_KEYWORDS = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions", "description", "title"})  # fmt: skip
_MARKERS: dict[str, str] = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "mistral_args": "[TOOL_CALLS]"}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, an object."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request with tools needs: the template to render with (None: the model's), format and constraint."""

    format: CallFormat
    template: str | None
    constraint: Constraint | None


def tools_from(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Tools in OpenAI's form, `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises RequestError for a tool that is no function, for a name that cannot be one or comes twice, and for
    parameters that are no JSON schema of an object.
    """
    if not 1 <= len(tools) <= _MOST_TOOLS:
        raise RequestError(f"{len(tools)} tools were given; allowed: 1 to {_MOST_TOOLS}")
    found: dict[str, Tool] = {}
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping):
            raise RequestError(f'tools[{place}] is no function; expected {{"type": "function", "function": {{...}}}}')
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(f"tools[{place}] is called {name!r:.80}; allowed: letters, digits, _ . -, at most 64")
        if name in found:
            raise RequestError(f"two tools are called {name}; give each a name of its own")
        parameters = {"properties": {}, "additionalProperties": False} if parameters is None else parameters
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            raise RequestError(f"tools[{place}] ({name}): parameters are no schema of an object; say type: object")
        found[name] = Tool(name, {"type": "object", **parameters})
    return list(found.values())


def call_format(tokenizer: Tokenizer) -> tuple[CallFormat, str | None]:
    """How the model writes calls, and the name of our template to use where its own would drop the tools.

    Told from the template and from the control tokens. Raises RequestError for a model without a known format.
    """
    try:
        source = choose_template(tokenizer.templates, tokenizer.specials, tokenizer.chat_format, tools=True) or ""
    except TemplateError as error:
        raise RequestError(f"tools need a chat template: {error}") from None
    name = None
    if "tools" not in source:
        name = _ours(tokenizer)
        source = "" if name is None else built_in(name)
    has = tokenizer.specials.id_of
    if "<tool_call>" in source:
        return "hermes", name
    if "[TOOL_CALLS]" in source and has("[TOOL_CALLS]") is not None:
        return ("mistral_args" if "[ARGS]" in source and has("[ARGS]") is not None else "mistral"), name
    if has("<|start_header_id|>") is not None and "tools" in source:
        pythonic = re.search(r"\[\s*func_name1\(|\w+\(params_name1=", source) is not None
        return ("pythonic" if pythonic else "llama3"), name
    raise RequestError(
        "this model has no known way to call tools (Hermes, Mistral or Llama 3); leave tools out or use another model"
    )


def use_tools(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], choice: ToolChoice = "auto", *, parallel: bool = True
) -> ToolUse:
    """What a request with these tools needs. Raises RequestError as `tools_from` and `call_format` do."""
    known = tools_from(tools)
    format, template = call_format(tokenizer)
    return ToolUse(format, template, tool_constraint(tokenizer, format, known, choice, parallel=parallel))


def tool_constraint(
    tokenizer: Tokenizer, format: CallFormat, tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool = True
) -> Constraint | None:
    """A constraint whose texts are answers with calls that parse and whose arguments obey their schemas.

    "auto" allows an answer without a call, "required" wants at least one, a named function wants exactly one of
    it; "none" gives None. Without `parallel`, and in the format `llama3`, there is at most one call.
    """
    named = _chosen(choice, tools)
    if choice == "none":
        return None
    writer = _Writer(format, tokenizer, [named] if named else tools)
    more = parallel and named is None and format != "llama3"
    lark, control_ids = writer.grammar(free_text=choice == "auto", more=more)
    return Constraint(encoded({"lark_grammar": lark}), control_ids, drops_space=format in ("llama3", "pythonic"))


def call_id(format: CallFormat, prompt_ids: Sequence[int], seed: int, index: int) -> str:
    """The id of an answer's call, the same whenever the request is run again. Mistral wants nine letters or digits.

    >>> call_id("mistral", [1, 2], 7, 0) == call_id("mistral", [1, 2], 7, 0) != call_id("mistral", [1, 2], 7, 1)
    True
    """
    digest = hashlib.sha256(json.dumps([list(prompt_ids), seed, index]).encode()).hexdigest()
    return digest[:9] if format.startswith("mistral") else f"call_{digest[:24]}"


def _ours(tokenizer: Tokenizer) -> str | None:
    has = tokenizer.specials.id_of
    for token, name in (("<|start_header_id|>", "llama3"), ("<|im_start|>", "chatml")):
        if has(token) is not None:
            return name
    return None


def _chosen(choice: ToolChoice, tools: Sequence[Tool]) -> Tool | None:
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise RequestError(f"tool_choice is {choice!r:.80}; allowed: none, auto, required, or a function by name")
        return None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        raise RequestError(f"tool_choice names {name!r:.80}; the tools are {', '.join(tool.name for tool in tools)}")
    return tool


class _Writer:
    """The grammar of one format, rule by rule."""

    def __init__(self, format: CallFormat, tokenizer: Tokenizer, tools: Sequence[Tool]) -> None:
        assert format in get_args(CallFormat)
        self.format = format
        self.tools = tools
        self.has = tokenizer.specials.id_of
        self.ids: set[int] = set()
        self.rules: list[str] = []

    def grammar(self, *, free_text: bool, more: bool) -> tuple[str, frozenset[int]]:
        marker = _MARKERS.get(self.format)
        start = self._starting(free_text, more) if marker is None else self._marked(marker, free_text, more)
        return "\n".join([f"start: {start}", *self.rules]), frozenset(self.ids)

    def _token(self, text: str) -> str:
        """A control token, or its text where the vocabulary has no such token."""
        id = self.has(text)
        if id is None:
            return quoted(text)
        self.ids.add(id)
        return f"<[{id}]>"

    def _marked(self, marker: str, free_text: bool, more: bool) -> str:
        """Free text goes on until the marker; its text cannot be written in any other way."""
        body = self._body()
        head = self._token(marker)
        between = quoted("\n") if self.format == "hermes" else ""
        calls = f"{head} {body}" + (f" ({between} {head} {body})*" if more and self.format != "mistral" else "")
        if self.format == "mistral":
            calls = f"{head} {quoted(' ')}? {quoted('[')} {body}" + (f" ({quoted(', ')} {body})*" if more else "")
            calls += " " + quoted("]")
        if not free_text:
            return calls
        escaped = re.escape(marker).replace("/", r"\/")
        self.rules.append(f"TEXT: /(?s:.*)/ & ~/(?s:.*){escaped}(?s:.*)/")
        if head.startswith("<["):
            return f"TEXT | TEXT {calls}"
        self.rules.append(f"HEAD: TEXT {head}")
        return f"TEXT | HEAD {calls.removeprefix(head)}"

    def _starting(self, free_text: bool, more: bool) -> str:
        """The first sign tells a call from free text."""
        opening, body = ("{", self._body()) if self.format == "llama3" else ("[", self._python())
        tag = "<|python_tag|>"
        if self.format == "pythonic":
            calls = quoted("[") + f" {body}" + (f" ({quoted(', ')} {body})*" if more else "") + " " + quoted("]")
        else:
            calls = f"{self._token(tag)}? {body}" if self.has(tag) is not None else body
        if not free_text:
            return calls
        self.rules.append(rf"PLAIN: /([^\{opening}\s](?s:.*))?/ & ~/{re.escape(tag)}(?s:.*)/")
        return f"{calls} | PLAIN"

    def _body(self) -> str:
        """One call of any tool."""
        for place, tool in enumerate(self.tools):
            if self.format == "mistral_args":
                rule = f"{quoted(tool.name)} {self._token('[ARGS]')} args_{place}"
            else:
                key = "parameters" if self.format == "llama3" else "arguments"
                opening = f'{{"name": {json.dumps(tool.name)}, "{key}": '
                rule = f"{quoted(opening)} args_{place} {quoted('}')}"
            self.rules += [f"call_{place}: {rule}", f"args_{place}: %json {_schema(tool.parameters)}"]
        self.rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(self.tools))))
        return f"{quoted(chr(10))} call {quoted(chr(10) + '</tool_call>')}" if self.format == "hermes" else "call"

    def _python(self) -> str:
        for place, tool in enumerate(self.tools):
            unknown = sorted(set(tool.parameters) - _PYTHONIC_KEYWORDS)
            if unknown or tool.parameters.get("additionalProperties", False) is not False:
                what = unknown[0] if unknown else "additionalProperties"
                raise RequestError(
                    f"{tool.name}: {what} cannot be honoured beside the parameters; calls name their arguments"
                )
            self.rules.append(f"call_{place}: {quoted(tool.name + '(')} {self._arguments(place, tool)} {quoted(')')}")
        self.rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(self.tools))))
        return "call"

    def _arguments(self, place: int, tool: Tool) -> str:
        """Rules `first` (nothing written yet) and `next` for each parameter, in order; optional ones may be left out."""
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        required = set(tool.parameters.get("required", ()))
        properties = dict(tool.parameters.get("properties", {}))
        for missing in sorted(required - set(properties)):
            raise RequestError(f"{tool.name}: {missing} is required but has no schema among the properties")
        for number, (name, schema) in enumerate(properties.items()):
            if not name.isidentifier():
                raise RequestError(
                    f"{tool.name}: a parameter is called {name!r:.60}; this model writes names of Python"
                )
            value = schema if isinstance(schema, bool) else {**definitions, **schema}
            here, after = f"p{place}_{number}", number + 1
            self.rules.append(f"{here}: {quoted(name + '=')} {here}_value")
            self.rules.append(f"{here}_value: %json {_schema({} if value is True else value)}")
            first = f"{here} next_{place}_{after}"
            following = f"{quoted(', ')} {here} next_{place}_{after}"
            skipped = name not in required
            self.rules.append(f"first_{place}_{number}: {first}" + (f" | first_{place}_{after}" if skipped else ""))
            self.rules.append(f"next_{place}_{number}: {following}" + (f" | next_{place}_{after}" if skipped else ""))
        self.rules += [f'first_{place}_{len(properties)}: ""', f'next_{place}_{len(properties)}: ""']
        return f"first_{place}_0"


def _schema(schema: object) -> str:
    return encoded(json_source(schema))
