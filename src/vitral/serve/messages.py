"""Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from vitral.engine.request import SamplingParams
from vitral.engine.tool_parser import TextDelta
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.conversation import Prepared, Speaker, prepare
from vitral.serve.faults import ApiError, error_body, to_api
from vitral.serve.glass import GlassBody
from vitral.serve.models import Model
from vitral.serve.records import new_id
from vitral.serve.run import Job, Run
from vitral.serve.sampling import Seed, Stop, seeds
from vitral.serve.sse import EventStream, event

__all__ = ["CountBody", "MessagesBody", "count_tokens", "messages"]


class CacheControl(Body):
    """Accepted, and needless: equal beginnings are found by content."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ToolUseBlock(Body):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(max_length=128)]
    name: Annotated[str, Field(max_length=64)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Body):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(max_length=128)]
    content: str | list[TextBlock] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class AnthropicMessage(Body):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(max_length=1024)]


class AnthropicTool(Body):
    """A function that may be called."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class AnthropicChoice(Body):
    """auto: as the model likes; any: at least one call; tool: this one; none."""

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, Field(max_length=64)] | None = None
    disable_parallel_tool_use: bool | None = None


class UserId(Body):
    """Who asks, as the client claims."""

    user_id: Annotated[str, Field(max_length=256)] | None = None


class CountBody(Body):
    """What a prompt is made of."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=4096)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicChoice | None = None


class MessagesBody(CountBody, GlassBody):
    """Parameters of a message. `seed` is ours."""

    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: UserId | None = None
    seed: Seed | None = None


async def messages(call: Call) -> Response:
    """Answer a conversation, as Anthropic's API does."""
    body: MessagesBody = call.body
    model = call.service.models.get(body.model)
    prepared = await _prepare(model, body)
    (seed,) = seeds(body.seed, 1)
    params = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=seed,
        max_tokens=body.max_tokens,
        stop_ids=model.tokenizer.eos_ids,
    )
    job = Job(
        prepared.prompt,
        params,
        tuple(body.stop_sequences or ()),
        continuing=prepared.continuing,
        constraint=prepared.constraint,
        **body.looks(prepared.prompt),
    )
    claimed = {"claimed_user": body.metadata.user_id} if body.metadata and body.metadata.user_id else {}
    run = Run(call.service, call.caller, model, call.route.path, [job], claimed)
    speaker = Speaker(prepared, seed)
    headers = {"x-vitral-record": run.record}
    if body.stream:
        return await EventStream.begin(
            _stream(run, model, body, speaker),
            lambda e: event(json.dumps(error_body(to_api(e), "anthropic")), "error"),
            headers,
            call.service.limits.stall_s,
        )
    async with run:
        async for piece in run.pieces():
            speaker.take(piece)
    content: list[dict[str, Any]] = (
        [{"type": "text", "text": speaker.text}] if speaker.text or not speaker.calls else []
    )
    content += [
        {"type": "tool_use", "id": each.id, "name": each.name, "input": _input(each.arguments)}
        for each in speaker.calls
    ]
    ended = {**_stopped(run, speaker), "usage": _usage(run), **body.shown(run.progress[0])}
    return json_response({**_head(run, model), "content": content, **ended}, headers)


async def count_tokens(call: Call) -> Response:
    """How many tokens a prompt has."""
    body: CountBody = call.body
    prepared = await _prepare(call.service.models.get(body.model), body)
    return json_response({"input_tokens": len(prepared.prompt)})


async def _prepare(model: Model, body: CountBody) -> Prepared:
    plain: list[dict[str, Any]] = []
    if body.system:
        plain.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        plain += _plain(message)
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "parameters": tool.input_schema}
            | ({"description": tool.description} if tool.description else {}),
        }
        for tool in body.tools or ()
    ]
    choice = body.tool_choice
    if choice is not None and (choice.type == "tool") != (choice.name is not None):
        raise ApiError(
            400, "invalid_value", "tool_choice has a name if, and only if, its type is tool", param="tool_choice"
        )
    wanted: Any = "auto"
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        wanted = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
    parallel = not (choice is not None and choice.disable_parallel_tool_use)
    begun = plain[-1]["role"] == "assistant" and not plain[-1].get("tool_calls")
    if begun and plain[-1]["content"] != plain[-1]["content"].rstrip():
        raise ApiError(
            400, "invalid_value", "the last message, which the answer goes on from, ends in blanks; remove them"
        )
    return await prepare(model, plain, None, tools or None, wanted, parallel=parallel, continuing=begun)


def _plain(message: AnthropicMessage) -> list[dict[str, Any]]:
    """As the templates know it: results of tools are messages of their own, before the text beside them."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results = [
        {"role": "tool", "content": _text(block.content), "tool_call_id": block.tool_use_id}
        for block in message.content
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block.text for block in message.content if isinstance(block, TextBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}
        for block in message.content
        if isinstance(block, ToolUseBlock)
    ]
    if results and not texts and not calls:
        return results
    said: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    return [*results, said | ({"tool_calls": calls} if calls else {})]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _input(arguments: str) -> Any:
    """The arguments as an object. An answer cut by max_tokens may have half of them; then there is none."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _head(run: Run, model: Model) -> dict[str, Any]:
    return {"id": new_id("msg"), "type": "message", "role": "assistant", "model": model.name, "record": run.record}


def _stopped(run: Run, speaker: Speaker) -> dict[str, Any]:
    progress = run.progress[0]
    if progress.finish == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if progress.stops.found is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": progress.stops.found}
    return {"stop_reason": "tool_use" if speaker.calls else "end_turn", "stop_sequence": None}


def _usage(run: Run) -> dict[str, int]:
    prompt, cached, completion = run.usage
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": completion,
    }


async def _stream(run: Run, model: Model, body: MessagesBody, speaker: Speaker) -> AsyncGenerator[bytes, None]:
    def say(kind: str, **data: Any) -> bytes:
        return event(json.dumps({"type": kind, **data}, ensure_ascii=False), kind)

    async with run:
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        yield say("message_start", message={**_head(run, model), **empty, "usage": {**_usage(run), "output_tokens": 0}})
        block = -1
        kind: str | int = ""
        async for piece in run.pieces():
            for delta in speaker.take(piece):
                wanted: str | int = "text" if isinstance(delta, TextDelta) else delta.index
                if wanted != kind:
                    if block >= 0:
                        yield say("content_block_stop", index=block)
                    block, kind = block + 1, wanted
                    opened: dict[str, Any] = {"type": "text", "text": ""}
                    if not isinstance(delta, TextDelta):
                        opened = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
                    yield say("content_block_start", index=block, content_block=opened)
                if isinstance(delta, TextDelta):
                    news = {"type": "text_delta", "text": delta.text}
                else:
                    news = {"type": "input_json_delta", "partial_json": delta.arguments}
                yield say("content_block_delta", index=block, delta=news)
        if block >= 0:
            yield say("content_block_stop", index=block)
        yield say("message_delta", delta=_stopped(run, speaker), usage=_usage(run), **body.shown(run.progress[0]))
        yield say("message_stop")
