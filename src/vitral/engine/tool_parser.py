"""An answer with tool calls, read as it is written: text and calls in pieces, never a part of a marker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitral.errors import RequestError

if TYPE_CHECKING:
    from vitral.engine.tools import CallFormat

__all__ = ["Delta", "TextDelta", "ToolCall", "ToolCallDelta", "ToolParser", "messages_for_template"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A finished call; `arguments` is JSON text, cut where the answer was."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the call `index`: the first one has its id and name, all of them pieces of its arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Delta = TextDelta | ToolCallDelta

_MARKERS: dict[str, str] = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "mistral_args": "[TOOL_CALLS]"}
_OPENINGS = {"llama3": "{", "pythonic": "["}
_TAG = "<|python_tag|>"
_JSON_CALL = re.compile(
    r'\s*[\[,]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)'
)
_ARGS_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\[ARGS\]\s*(?=\S)")
_PYTHON_CALL = re.compile(r"\s*[\[,]?\s*([A-Za-z_][\w.-]*)\(")
_PYTHON_NAME = re.compile(r"\s*,?\s*([^\W\d]\w*)=(?=[^=])")


class ToolParser:
    """Takes text in pieces of any size and gives deltas. `new_id` names the call of an index.

    The constraint of `vitral.engine.tools` sees to it that what comes after a marker is a call. A call
    that is cut short before its name is whole is not told at all.

    >>> parser = ToolParser("hermes", lambda index: f"call_{index}")
    >>> deltas = parser.push('Sure.<tool_call>\\n{"name": "now", "arguments": {"zone": "UTC"}}\\n</tool_call>')
    >>> deltas[0], parser.calls
    (TextDelta(text='Sure.'), [ToolCall(id='call_0', name='now', arguments='{"zone": "UTC"}')])
    """

    def __init__(self, format: CallFormat, new_id: Callable[[int], str]) -> None:
        self._format = format
        self._new_id = new_id
        self._marker = _MARKERS.get(format)
        self._held = ""
        self._arguments: _Value | None = None  # of the call that is being written
        self._step = self._text if self._marker else self._opening
        self._python_first = True
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> list[Delta]:
        """What is certain once this text is known."""
        self._held += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """The answer ended: what was held back as the beginning of a marker was text after all."""
        held, self._held = self._held, ""
        begun = bool(self.calls) or self._step == self._call
        return [] if begun or not held else [TextDelta(held)]

    def _text(self, deltas: list[Delta]) -> bool:
        """Text up to a marker."""
        assert self._marker is not None
        place = self._held.find(self._marker)
        if place >= 0:
            self._say(self._held[:place], deltas)
            self._held = self._held[place + len(self._marker) :]
            self._step = self._call
            return True
        keep = next((n for n in range(len(self._marker) - 1, 0, -1) if self._held.endswith(self._marker[:n])), 0)
        self._say(self._held[: len(self._held) - keep], deltas)
        self._held = self._held[len(self._held) - keep :]
        return False

    def _opening(self, deltas: list[Delta]) -> bool:
        """Whether the answer is text or a call, by its first sign."""
        begun = self._held.lstrip()
        if not begun or _TAG.startswith(begun):
            return False
        if begun.startswith(_TAG):
            self._held = begun.removeprefix(_TAG)
            self._step = self._call
        else:
            self._step = self._call if begun[0] == _OPENINGS[self._format] else self._plain
        return True

    def _plain(self, deltas: list[Delta]) -> bool:
        self._say(self._held, deltas)
        self._held = ""
        return False

    def _call(self, deltas: list[Delta]) -> bool:
        """The name of a call, up to its arguments."""
        pattern = {"mistral_args": _ARGS_CALL, "pythonic": _PYTHON_CALL}.get(self._format, _JSON_CALL)
        match = pattern.match(self._held)
        if match is None:
            return False
        self._held = self._held[match.end() :]
        name = match[1] if pattern is not _JSON_CALL else json.loads(match[1])
        index = len(self.calls)
        self.calls.append(ToolCall(self._new_id(index), name, ""))
        deltas.append(ToolCallDelta(index, "", self.calls[-1].id, name))
        if self._format == "pythonic":
            self._python_first = True
            self._argue("{", deltas)
            self._step = self._python_argument
        else:
            self._arguments, self._step = _Value(), self._value
        return True

    def _value(self, deltas: list[Delta]) -> bool:
        """Arguments as they come, up to the end of the object."""
        assert self._arguments is not None
        taken = self._arguments.take(self._held)
        self._argue(self._held[:taken], deltas)
        self._held = self._held[taken:]
        if not self._arguments.ended:
            return False
        self._step = self._python_argument if self._format == "pythonic" else self._after
        return True

    def _python_argument(self, deltas: list[Delta]) -> bool:
        """The name of an argument, or the end of the call."""
        if self._held.lstrip().startswith(")"):
            self._held = self._held.lstrip()[1:]
            self._argue("}", deltas)
            self._step = self._call
            return True
        match = _PYTHON_NAME.match(self._held)
        if match is None:
            return False
        self._held = self._held[match.end() :]
        self._argue(("" if self._python_first else ", ") + json.dumps(match[1]) + ": ", deltas)
        self._python_first = False
        self._arguments, self._step = _Value(), self._value
        return True

    def _after(self, deltas: list[Delta]) -> bool:
        """What stands between calls: a closing brace and a marker."""
        if self._format == "mistral_args":
            return self._to_next(self._marker)
        if not self._held.lstrip().startswith("}"):
            return False
        if self._format == "hermes":
            return self._to_next(self._marker)
        self._held = self._held.lstrip()[1:]
        self._step = self._call
        return True

    def _to_next(self, marker: str | None) -> bool:
        assert marker is not None
        place = self._held.find(marker)
        if place < 0:
            return False
        self._held = self._held[place + len(marker) :]
        self._step = self._call
        return True

    def _say(self, text: str, deltas: list[Delta]) -> None:
        if text:
            deltas.append(TextDelta(text))

    def _argue(self, text: str, deltas: list[Delta]) -> None:
        if text:
            call = self.calls[-1]
            self.calls[-1] = ToolCall(call.id, call.name, call.arguments + text)
            deltas.append(ToolCallDelta(len(self.calls) - 1, text))


class _Value:
    """Finds the end of a JSON value that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_text, self._escaped, self._begun = 0, False, False, False
        self.ended = False

    def take(self, text: str) -> int:
        """How many characters of the text belong to the value; `ended` if it ends behind them."""
        for place, char in enumerate(text):
            if self._in_text:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_text = False
                    if self._depth == 0:
                        self.ended = True
                        return place + 1
            elif char == '"':
                self._in_text = self._begun = True
            elif char in "{[":
                self._depth, self._begun = self._depth + 1, True
            elif self._depth == 0 and (char in ",)}]" or (self._begun and char.isspace())):
                self.ended = True  # behind a number, true, false or null
                return place
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
            elif not char.isspace():
                self._begun = True
        return len(text)


def messages_for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates read them: the arguments of earlier calls as objects, where they came as JSON text."""
    return [
        {**message, "tool_calls": [_parsed(call) for call in message["tool_calls"]]}
        if isinstance(message, Mapping) and message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError("an entry of tool_calls has no function; expected id, type and function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise RequestError(
                f"the arguments of a call of {function.get('name')} are no JSON: {arguments:.80}"
            ) from None
    if not isinstance(arguments, Mapping):
        raise RequestError(f"the arguments of a call of {function.get('name')} are no object")
    return {**call, "function": {**function, "arguments": arguments}}
