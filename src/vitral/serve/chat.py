"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from vitral.engine.request import TokenScore
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.faults import ApiError, error_body, to_api
from vitral.serve.models import Model
from vitral.serve.records import new_id
from vitral.serve.run import Job, Piece, Run
from vitral.serve.sampling import Metadata, SamplingBody, notes, seeds
from vitral.serve.sse import EventStream, event
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatBody", "Message", "chat", "chat_ids", "plain_messages", "usage_of"]

FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}


class TextPart(Body):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: None = None


class ChatBody(SamplingBody):
    """Parameters of a chat completion."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
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
    prompt = await chat_ids(model, plain_messages(body.messages))
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    jobs = [Job(prompt, body.params(model, seed, most, logprobs), body.stops) for seed in seeds(body.seed, body.n or 1)]
    run = Run(call.service, call.caller, model, call.route.path, jobs, notes(body))
    headers = {"x-vitral-record": run.record}
    if body.stream:
        events = _stream(run, model, body)
        return await EventStream.begin(
            events, lambda e: event(json.dumps(error_body(to_api(e), "openai"))), headers, call.service.limits.stall_s
        )
    texts: list[str] = [""] * len(jobs)
    scores: list[list[TokenScore]] = [[] for _ in jobs]
    async with run:
        async for piece in run.pieces():
            texts[piece.index] += piece.text
            scores[piece.index] += piece.scores
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(model.tokenizer, scores[index]) if body.logprobs else None,
            "finish_reason": FINISH[run.progress[index].finish or "stop"],
        }
        for index, text in enumerate(texts)
    ]
    return json_response({**_head(run, model, "chat.completion"), "choices": choices, "usage": usage_of(run)}, headers)


async def chat_ids(
    model: Model, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[int, ...]:
    """Ids of a conversation by the model's template, on a thread: the template is a stranger's program."""
    return tuple(await asyncio.to_thread(model.tokenizer.encode_chat, messages, tools=tools))


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the templates know them: text parts joined by a line break, `developer` as `system`."""
    plain = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        role = "system" if message.role == "developer" else message.role
        plain.append({"role": role, "content": content or ""} | ({"name": message.name} if message.name else {}))
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


async def _stream(run: Run, model: Model, body: ChatBody) -> AsyncGenerator[bytes, None]:
    """Chunks; what all have in common is encoded once."""
    start = json.dumps(_head(run, model, "chat.completion.chunk"), ensure_ascii=False, separators=(",", ":"))[:-1]
    end = ',"usage":null}\n\n' if body.wants_usage else "}\n\n"

    def chunk(choice: str) -> bytes:
        return f'data: {start},"choices":[{choice}]{end}'.encode()

    async with run:
        begun: set[int] = set()
        async for piece in run.pieces():
            if piece.index not in begun:
                begun.add(piece.index)
                delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
                yield chunk(f'{{"index":{piece.index},{delta}}}')
            if piece.text or piece.scores:
                yield chunk(_choice(piece, model.tokenizer, bool(body.logprobs)))
            if piece.finish is not None:
                why = json.dumps(FINISH[piece.finish])
                yield chunk(f'{{"index":{piece.index},"delta":{{}},"logprobs":null,"finish_reason":{why}}}')
        if body.wants_usage:
            yield f'data: {start},"choices":[],"usage":{json.dumps(usage_of(run))}}}\n\n'.encode()
        yield event("[DONE]")


def _choice(piece: Piece, tokenizer: Tokenizer, wanted: bool) -> str:
    logprobs = json.dumps(_logprobs(tokenizer, piece.scores)) if wanted else "null"
    text = json.dumps(piece.text, ensure_ascii=False)
    return f'{{"index":{piece.index},"delta":{{"content":{text}}},"logprobs":{logprobs},"finish_reason":null}}'


def _logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**entry(score.token, score.logprob), "top_logprobs": [entry(token, value) for token, value in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}
