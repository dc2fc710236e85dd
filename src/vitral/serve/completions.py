"""`POST /v1/completions`: text or token ids in, with `echo` and the prompt's log-probabilities."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from vitral.engine.request import TokenScore
from vitral.serve.call import Call, json_response
from vitral.serve.chat import FINISH, usage_of
from vitral.serve.faults import ApiError, error_body, to_api
from vitral.serve.models import Model
from vitral.serve.records import new_id
from vitral.serve.run import Job, Run
from vitral.serve.sampling import SamplingBody, notes, seeds
from vitral.serve.sse import EventStream, event
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["CompletionBody", "Ids", "Text", "completions", "prompt_ids"]

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]
Text = Annotated[str, Field(max_length=8 << 20)]


class CompletionBody(SamplingBody):
    """Parameters of a completion. `prompt` is a text, several, token ids, or several lists of them."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None


async def completions(call: Call) -> Response:
    """Continue texts or token ids."""
    body: CompletionBody = call.body
    model = call.service.models.get(body.model)
    n = body.n or 1
    if body.best_of not in (None, n):
        raise ApiError(
            400, "unsupported_parameter", "best_of other than n is not supported: ask for n", param="best_of"
        )
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "invalid_value", "stream_options needs stream to be true", param="stream_options")
    prompts = await prompt_ids(model, body.prompt)
    if len(prompts) * n > call.service.limits.sequences:
        most = call.service.limits.sequences
        raise ApiError(400, "invalid_value", f"{len(prompts)} prompts times n {n} is over {most} sequences", param="n")
    scored = body.logprobs if body.echo and body.logprobs is not None else None
    max_tokens = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
    jobs = [
        Job(
            prompt,
            body.params(model, seed, max_tokens, body.logprobs, scored),
            body.stops,
            continuing=any(token not in model.tokenizer.special_ids for token in prompt),
            **body.looks(prompt),
        )
        for prompt in prompts
        for seed in seeds(body.seed, n)
    ]
    run = Run(call.service, call.caller, model, call.route.path, jobs, notes(body))
    headers = {"x-vitral-record": run.record}
    if body.stream:
        return await EventStream.begin(
            _stream(run, model, body),
            lambda e: event(json.dumps(error_body(to_api(e), "openai"))),
            headers,
            call.service.limits.stall_s,
        )
    texts = [""] * len(jobs)
    scores: list[list[TokenScore]] = [[] for _ in jobs]
    async with run:
        async for piece in run.pieces():
            texts[piece.index] += piece.text
            scores[piece.index] += piece.scores
    choices = []
    for index, progress in enumerate(run.progress):
        prompt = progress.sequence.prompt if body.echo else ()
        shown = model.tokenizer.decode(prompt, skip_special=True) if prompt else ""
        logprobs = None
        if body.logprobs is not None:
            before = progress.prompt_scores or () if body.echo else ()
            continuing = not body.echo and progress.sequence.continuing
            logprobs = _logprobs(model.tokenizer, prompt[:1], before, scores[index], continuing=continuing)
        choices.append(
            {
                "index": index,
                "text": shown + texts[index],
                "logprobs": logprobs,
                "finish_reason": FINISH[progress.finish or "stop"],
                **body.shown(progress),
            }
        )
    return json_response({**_head(run, model), "choices": choices, "usage": usage_of(run)}, headers)


async def prompt_ids(model: Model, prompt: str | list[str] | list[int] | list[list[int]]) -> list[tuple[int, ...]]:
    """Each prompt's ids; texts are encoded on a thread, with the special tokens that the model wants around them."""
    if isinstance(prompt, str):
        return [tuple(await asyncio.to_thread(model.tokenizer.encode, prompt))]
    if isinstance(prompt[0], int):
        return [tuple(prompt)]
    found = []
    for each in prompt:
        ids = await asyncio.to_thread(model.tokenizer.encode, each) if isinstance(each, str) else each
        found.append(tuple(ids))
    return found


def _head(run: Run, model: Model) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
        "record": run.record,
    }


async def _stream(run: Run, model: Model, body: CompletionBody) -> AsyncGenerator[bytes, None]:
    end = ',"usage":null}\n\n' if body.wants_usage else "}\n\n"
    async with run:
        start = json.dumps(_head(run, model), ensure_ascii=False, separators=(",", ":"))[:-1]
        offsets = [0] * len(run.progress)
        echoed: set[int] = set()
        async for piece in run.pieces():
            if body.echo and piece.index not in echoed:
                echoed.add(piece.index)
                progress = run.progress[piece.index]
                prompt = progress.sequence.prompt
                shown = model.tokenizer.decode(prompt, skip_special=True)
                scores = _logprobs(model.tokenizer, prompt[:1], progress.prompt_scores or (), ())
                before = {"logprobs": scores if body.logprobs is not None else None, "finish_reason": None}
                offsets[piece.index] = len(shown)
                choice = {"index": piece.index, "text": shown, **before}
                yield f'data: {start},"choices":[{json.dumps(choice, ensure_ascii=False)}]{end}'.encode()
            logprobs = None
            if body.logprobs is not None:
                logprobs = _logprobs(
                    model.tokenizer, (), (), piece.scores, text_from=offsets[piece.index], continuing=True
                )
            offsets[piece.index] += len(piece.text)
            choice = {
                "index": piece.index,
                "text": piece.text,
                "logprobs": logprobs,
                "finish_reason": None if piece.finish is None else FINISH[piece.finish],
                **({} if piece.finish is None else body.shown(run.progress[piece.index])),
            }
            yield f'data: {start},"choices":[{json.dumps(choice, ensure_ascii=False)}]{end}'.encode()
        if body.wants_usage:
            yield f'data: {start},"choices":[],"usage":{json.dumps(usage_of(run))}}}\n\n'.encode()
        yield event("[DONE]")


def _logprobs(
    tokenizer: Tokenizer,
    first: Sequence[int],
    prompt: Sequence[TokenScore],
    answer: Sequence[TokenScore],
    *,
    text_from: int = 0,
    continuing: bool = False,
) -> dict[str, Any]:
    """OpenAI's four lists; an offset says where in the choice's text a token begins.

    The prompt's first token has no log-probability: nothing predicts it.
    """
    tokens: list[str] = []
    offsets: list[int] = []
    stream = tokenizer.stream(skip_special=True, continuing=continuing)
    for token in (*first, *(score.token for score in (*prompt, *answer))):
        tokens.append(_text(tokenizer, token))
        offsets.append(text_from)
        if token < tokenizer.vocab_size:
            text_from += len(stream.push(token))
    scores = (*prompt, *answer)
    return {
        "tokens": tokens,
        "token_logprobs": [*(None for _ in first), *(score.logprob for score in scores)],
        "top_logprobs": [*(None for _ in first), *(_top(tokenizer, score) for score in scores)],
        "text_offset": offsets,
    }


def _top(tokenizer: Tokenizer, score: TokenScore) -> dict[str, float]:
    """Texts of the likeliest tokens; of equal texts the likeliest stays."""
    return {_text(tokenizer, token): value for token, value in reversed(score.top)}


def _text(tokenizer: Tokenizer, token: int) -> str:
    data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
