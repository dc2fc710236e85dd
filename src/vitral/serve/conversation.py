"""What OpenAI's chats, OpenAI's responses and Anthropic's messages have in common: a prompt made of messages and
tools, a form that the answer is held to, and an answer that is text and calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vitral.engine.grammar import Constraint
from vitral.engine.tool_parser import Delta, TextDelta, ToolCall, ToolParser, messages_for_template
from vitral.engine.tools import CallFormat, ToolChoice, call_id, use_tools
from vitral.errors import RequestError
from vitral.serve.constraints import constraint_to
from vitral.serve.faults import ApiError
from vitral.serve.models import Model
from vitral.serve.run import Piece

__all__ = ["Form", "Prepared", "Speaker", "prepare"]

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must be: a JSON object, or of a schema. Without either: free text. param: who says so."""

    schema: Any = None
    json_object: bool = False
    param: str = "response_format"

    def constraint(self) -> Constraint | None:
        """For the engine; ApiError 400 names a keyword that cannot be honoured."""
        if self.schema is not None:
            with _blamed(self.param):
                return Constraint.json_schema(self.schema)
        return Constraint.json_object() if self.json_object else None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ids to read, the constraint on what follows (on the wire's terms), and how calls are written in it."""

    prompt: tuple[int, ...]
    constraint: str | None
    format: CallFormat | None
    continuing: bool = False


async def prepare(
    model: Model,
    messages: Messages,
    form: Form | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    choice: ToolChoice = "auto",
    *,
    parallel: bool = True,
    continuing: bool = False,
) -> Prepared:
    """Render, encode and compile, on a thread: the template is a stranger's program. `tools` are in OpenAI's form.

    choice: as `ToolChoice`, or OpenAI's {"type": "allowed_tools", "mode": ..., "tools": [...]}.
    continuing: the last message is the beginning of the answer.
    Raises ApiError, RequestError or TemplateError for what cannot be done.
    """
    return await asyncio.to_thread(_prepare, model, messages, form or Form(), tools, choice, parallel, continuing)


def _prepare(
    model: Model,
    messages: Messages,
    form: Form,
    tools: Sequence[Mapping[str, Any]] | None,
    choice: ToolChoice,
    parallel: bool,
    continuing: bool,
) -> Prepared:
    constraint = form.constraint()
    callable = tools
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        callable, choice = _allowed(tools or (), choice)
    with _blamed("tool_choice"):
        if not tools and choice not in ("auto", "none"):
            raise RequestError("tool_choice asks for a call, but there are no tools; give tools, or leave it out")
    with _blamed("tools"):
        use = use_tools(model.tokenizer, callable, choice, parallel=parallel) if callable else None
    if choice == "none":
        use = None
    if use is not None and constraint is not None:
        raise RequestError("an answer cannot be held to a form and call tools at once; say tool_choice none")
    prompt = model.tokenizer.encode_chat(
        messages_for_template(messages),
        tools=tools if use is not None else None,
        template=None if use is None else use.template,
        continuing=continuing,
    )
    if use is not None:
        constraint = use.constraint
    if constraint is not None and continuing:
        raise RequestError("an answer that goes on from your own words cannot be held to a form, nor call tools")
    if constraint is not None:
        model.need("constraints", "an answer held to a form, or calls of tools")
    wire = None if constraint is None else constraint_to(constraint)
    return Prepared(tuple(prompt), wire, None if use is None else use.format, continuing)


def _allowed(
    tools: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any]], ToolChoice]:
    """The tools that may be called, of those that the model sees, and whether one must be."""
    names = [tool["function"]["name"] for tool in choice["tools"]]
    known = {tool["function"]["name"]: tool for tool in tools}
    with _blamed("tool_choice"):
        for name in names:
            if name not in known:
                raise RequestError(f"tool_choice names {name!r}; the tools are {', '.join(known) or 'none'}")
    return [known[name] for name in dict.fromkeys(names)], choice["mode"]


@contextmanager
def _blamed(param: str) -> Iterator[None]:
    """A RequestError as an ApiError that names the parameter."""
    try:
        yield
    except ApiError:
        raise
    except RequestError as error:
        named = "tool_choice" if str(error).startswith("tool_choice") else param
        raise ApiError(400, "invalid_value", str(error), param=named) from None


@dataclass(slots=True)
class Speaker:
    """One answer as it grows: text, and calls if the prompt had tools."""

    prepared: Prepared
    seed: int
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    _parser: ToolParser | None = None

    def __post_init__(self) -> None:
        format = self.prepared.format
        if format is not None:
            self._parser = ToolParser(format, lambda index: call_id(format, self.prepared.prompt, self.seed, index))

    def take(self, piece: Piece) -> list[Delta]:
        """What a piece brings."""
        if self._parser is None:
            deltas: list[Delta] = [TextDelta(piece.text)] if piece.text else []
        else:
            deltas = self._parser.push(piece.text) if piece.text else []
            if piece.finish is not None:
                deltas += self._parser.finish()
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self.text += delta.text
            elif delta.index == len(self.calls):
                self.calls.append(ToolCall(delta.id or "", delta.name or "", delta.arguments))
            else:
                call = self.calls[delta.index]
                self.calls[delta.index] = ToolCall(call.id, call.name, call.arguments + delta.arguments)
        return deltas
