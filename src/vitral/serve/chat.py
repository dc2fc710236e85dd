"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.responses import Response

from vitral.engine.request import TokenScore
from vitral.engine.tool_parser import Delta, TextDelta
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.conversation import Form, Speaker, prepare
from vitral.serve.faults import ApiError, error_body, to_api
from vitral.serve.models import Model
from vitral.serve.records import new_id
from vitral.serve.run import Job, Run
from vitral.serve.sampling import Metadata, SamplingBody, notes, seeds
from vitral.serve.sse import EventStream, event, quoted
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatBody", "Message", "chat", "plain_messages", "token_logprobs", "usage_of"]

FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}


class TextPart(Body):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """Arguments are JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: str


class MessageCall(Body):
    """A call that an earlier answer made."""

    id: Annotated[str, Field(max_length=128)]
    type: Literal["function"]
    function: CalledFunction


class Message(Body):
    """One message. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[MessageCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    content: str | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: None = None


class Function(Body):
    """A function that may be called. With or without `strict`, calls obey the schema."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A tool in OpenAI's form."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    """A function by name."""

    name: Annotated[str, Field(max_length=64)]


class ChosenTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class AllowedTools(Body):
    """Those of the tools that may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1, max_length=128)]


class AllowedChoice(Body):
    """All tools are shown, some may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools

    def plain(self) -> dict[str, Any]:
        """For `prepare`."""
        return {"type": self.type, **self.allowed_tools.model_dump()}


class JsonSchema(Body):
    """A schema for the answer. With or without `strict`, the answer obeys it."""

    name: Annotated[str, Field(max_length=64)]
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and with no other")
        return self

    def form(self) -> Form:
        """For the engine."""
        return Form(None if self.json_schema is None else self.json_schema.schema_, self.type == "json_object")


class ChatBody(SamplingBody):
    """Parameters of a chat completion."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolBody], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    store: Literal[False] | None = None


async def chat(call: Call) -> Response:
    """Answer a conversation."""
    body: ChatBody = call.body
    model = call.service.models.get(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "invalid_value", "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "invalid_value", "stream_options needs stream to be true", param="stream_options")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise ApiError(
            400, "invalid_value", "max_tokens and max_completion_tokens differ; give one", param="max_tokens"
        )
    choice: Any = body.tool_choice or "auto"
    if isinstance(choice, Body):
        choice = choice.plain() if isinstance(choice, AllowedChoice) else choice.model_dump()
    prepared = await prepare(
        model,
        plain_messages(body.messages),
        body.response_format.form() if body.response_format else None,
        [tool.model_dump(exclude_none=True) for tool in body.tools] if body.tools else None,
        choice,
        parallel=body.parallel_tool_calls is not False,
    )
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    drawn = seeds(body.seed, body.n or 1)
    looks = body.looks(prepared.prompt)
    jobs = [
        Job(
            prepared.prompt,
            body.params(model, seed, most, logprobs),
            body.stops,
            constraint=prepared.constraint,
            **looks,
        )
        for seed in drawn
    ]
    speakers = [Speaker(prepared, seed) for seed in drawn]
    run = Run(call.service, call.caller, model, call.route.path, jobs, notes(body))
    headers = {"x-vitral-record": run.record}
    if body.stream:
        events = _stream(run, model, body, speakers)
        return await EventStream.begin(
            events, lambda e: event(json.dumps(error_body(to_api(e), "openai"))), headers, call.service.limits.stall_s
        )
    scores: list[list[TokenScore]] = [[] for _ in jobs]
    async with run:
        async for piece in run.pieces():
            speakers[piece.index].take(piece)
            scores[piece.index] += piece.scores
    choices = [
        {
            "index": index,
            "message": _message(speaker),
            "logprobs": _logprobs(model.tokenizer, scores[index]) if body.logprobs else None,
            "finish_reason": _finish(run.progress[index].finish, speaker),
            **body.shown(run.progress[index]),
        }
        for index, speaker in enumerate(speakers)
    ]
    return json_response({**_head(run, model, "chat.completion"), "choices": choices, "usage": usage_of(run)}, headers)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the templates know them: text parts joined by a line break, `developer` as `system`."""
    plain = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        role = "system" if message.role == "developer" else message.role
        entry: dict[str, Any] = {"role": role, "content": content or ""}
        if message.name:
            entry["name"] = message.name
        if message.tool_calls:
            entry["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        plain.append(entry)
    return plain


def usage_of(run: Run) -> dict[str, Any]:
    """OpenAI's counts."""
    prompt, cached, completion = run.usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _head(run: Run, model: Model, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
        "record": run.record,
    }


def _message(speaker: Speaker) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": speaker.text or None, "refusal": None}
    if speaker.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in speaker.calls
        ]
    else:
        message["content"] = speaker.text
    return message


def _finish(reason: str | None, speaker: Speaker) -> str:
    why = FINISH[reason or "stop"]
    return "tool_calls" if why == "stop" and speaker.calls else why


async def _stream(run: Run, model: Model, body: ChatBody, speakers: Sequence[Speaker]) -> AsyncGenerator[bytes, None]:
    """Chunks; what all have in common is encoded once."""
    end = ',"usage":null}\n\n' if body.wants_usage else "}\n\n"

    def chunk(choice: str) -> bytes:
        return f'data: {start},"choices":[{choice}]{end}'.encode()

    async with run:
        start = json.dumps(_head(run, model, "chat.completion.chunk"), ensure_ascii=False, separators=(",", ":"))[:-1]
        begun: set[int] = set()
        async for piece in run.pieces():
            if piece.index not in begun:
                begun.add(piece.index)
                delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
                yield chunk(f'{{"index":{piece.index},{delta}}}')
            speaker = speakers[piece.index]
            logprobs = "null"
            if piece.scores and body.logprobs:
                logprobs = json.dumps(_logprobs(model.tokenizer, piece.scores))
            deltas = speaker.take(piece)
            for each in deltas or ([TextDelta("")] if logprobs != "null" else []):
                yield chunk(
                    f'{{"index":{piece.index},"delta":{_delta(each)},"logprobs":{logprobs},"finish_reason":null}}'
                )
                logprobs = "null"
            if piece.finish is not None:
                why = json.dumps(_finish(piece.finish, speaker))
                shown = json.dumps(body.shown(run.progress[piece.index]), separators=(",", ":"), allow_nan=False)
                more = f",{shown[1:-1]}" if body.inspect is not None else ""
                yield chunk(f'{{"index":{piece.index},"delta":{{}},"logprobs":null,"finish_reason":{why}{more}}}')
        if body.wants_usage:
            yield f'data: {start},"choices":[],"usage":{json.dumps(usage_of(run))}}}\n\n'.encode()
        yield event("[DONE]")


def _delta(delta: Delta) -> str:
    if isinstance(delta, TextDelta):
        return f'{{"content":{quoted(delta.text)}}}'
    call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
        call["function"] = {"name": delta.name, "arguments": delta.arguments}
    return json.dumps({"tool_calls": [call]}, ensure_ascii=False)


def _logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> dict[str, Any]:
    return {"content": token_logprobs(tokenizer, scores), "refusal": None}


def token_logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """Each token with its log-probability and those of the likeliest, as OpenAI's chats and responses have them."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    return [
        {**entry(score.token, score.logprob), "top_logprobs": [entry(token, value) for token, value in score.top]}
        for score in scores
    ]
