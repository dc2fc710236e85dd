"""What OpenAI's chats, OpenAI's responses and Anthropic's messages have in common: a prompt made of messages and
tools, a form that the answer is held to, and an answer that is text and calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitral.engine.grammar import Constraint
from vitral.engine.tool_parser import Delta, TextDelta, ToolCall, ToolParser, messages_for_template
from vitral.engine.tools import CallFormat, ToolChoice, call_id, use_tools
from vitral.errors import RequestError
from vitral.serve.constraints import constraint_to
from vitral.serve.models import Model
from vitral.serve.run import Piece

__all__ = ["Form", "Prepared", "Speaker", "prepare"]

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must be: a JSON object, or of a schema. Without either: free text."""

    schema: Any = None
    json_object: bool = False

    def constraint(self) -> Constraint | None:
        """For the engine; RequestError names a keyword that cannot be honoured."""
        if self.schema is not None:
            return Constraint.json_schema(self.schema)
        return Constraint.json_object() if self.json_object else None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ids to read, the constraint on what follows (on the wire's terms), and how calls are written in it."""

    prompt: tuple[int, ...]
    constraint: str | None
    format: CallFormat | None


async def prepare(
    model: Model,
    messages: Messages,
    form: Form | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    choice: ToolChoice = "auto",
    *,
    parallel: bool = True,
) -> Prepared:
    """Render, encode and compile, on a thread: the template is a stranger's program. `tools` are in OpenAI's form.

    Raises RequestError or TemplateError for what cannot be done.
    """
    return await asyncio.to_thread(_prepare, model, messages, form or Form(), tools, choice, parallel)


def _prepare(
    model: Model,
    messages: Messages,
    form: Form,
    tools: Sequence[Mapping[str, Any]] | None,
    choice: ToolChoice,
    parallel: bool,
) -> Prepared:
    constraint = form.constraint()
    if not tools and choice not in ("auto", "none"):
        raise RequestError("tool_choice asks for a call, but there are no tools; give tools, or leave it out")
    use = use_tools(model.tokenizer, tools, choice, parallel=parallel) if tools else None
    if choice == "none":
        use = None
    if use is not None and constraint is not None:
        raise RequestError("an answer cannot be held to a form and call tools at once; say tool_choice none")
    prompt = model.tokenizer.encode_chat(
        messages_for_template(messages),
        tools=tools if use is not None else None,
        template=None if use is None else use.template,
    )
    if use is not None:
        constraint = use.constraint
    if constraint is not None:
        model.need("constraints", "an answer held to a form, or calls of tools")
    wire = None if constraint is None else constraint_to(constraint)
    return Prepared(tuple(prompt), wire, None if use is None else use.format)


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
