"""`POST /v1/inspect`: read a text, or let it go on, and get values of the forward pass, as JSON, safetensors or Arrow; or
the document of `vitral inspect`, or its page."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.responses import Response

from vitral.engine.request import SamplingParams
from vitral.errors import SettingsError
from vitral.formats.arrow import ARROW_MEDIA_TYPE, arrays_as_arrow
from vitral.formats.safetensors import arrays_as_safetensors
from vitral.lens.inspect import token_text
from vitral.lens.page import page
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.chat import Message, plain_messages, usage_of
from vitral.serve.completions import Ids, Text, prompt_ids
from vitral.serve.conversation import prepare
from vitral.serve.engines import Picture
from vitral.serve.faults import ApiError
from vitral.serve.glass import WatchBody, changes, document, readings, watches
from vitral.serve.models import Model
from vitral.serve.records import new_id
from vitral.serve.run import Job, Run

__all__ = ["InspectionBody", "inspect"]


class InspectionBody(Body):
    """What to read, what to show, what to change. The answer, if any, has the likeliest tokens.

    light: the light set of every token; for what comes after, `record` as in the block `inspect` of a chat.
    format "document" or "html": the document of `vitral inspect`, with `window` and `top` as there.
    """

    model: Annotated[str, Field(min_length=1, max_length=256)]
    prompt: Text | Ids | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] = 0
    light: bool = False
    record: Annotated[list[WatchBody], Field(max_length=8)] = []
    interventions: dict[str, Any] | None = None
    format: Literal["lists", "base64", "safetensors", "arrow", "document", "html"] = "lists"
    window: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    top: Annotated[int, Field(ge=1, le=50)] | None = None

    @model_validator(mode="after")
    def _one_text(self) -> InspectionBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.is_document and (self.record or self.light):
            raise ValueError(f"record and light do not go with the format {self.format}, which shows what it shows")
        if not self.is_document and (self.window or self.top):
            raise ValueError("window and top go with the formats document and html")
        return self

    @property
    def is_document(self) -> bool:
        """Whether the document of `vitral inspect` is wanted."""
        return self.format in ("document", "html")


async def inspect(call: Call) -> Response:
    """Read a text and show values of the forward pass."""
    body: InspectionBody = call.body
    model = call.service.models.get(body.model)
    if body.is_document:
        return await _documented(call, model, body)
    if not body.record and not body.light:
        raise ApiError(400, "missing_parameter", "nothing is to be shown: give record, light or both", param="record")
    if body.format == "arrow":
        _arrow_or_refused()
    prompt = await _prompt(model, body)
    job = Job(
        prompt,
        SamplingParams(max_tokens=body.max_tokens, stop_ids=model.tokenizer.eos_ids, seed=0),
        watch=watches(body.record, len(prompt), "record"),
        light=0 if body.light else None,
        interventions=changes(body.interventions),
    )
    run = await _ran(call, model, job)
    headers = {"x-vitral-record": run.record}
    progress = run.progress[0]
    ids = [*prompt, *progress.tokens]
    if body.format == "safetensors" or body.format == "arrow":
        arrays = {}
        for one in readings(progress):
            name = f"{'light' if one.record is None else one.record}/{one.name}"
            arrays[name] = one.values
            if one.record is not None:
                arrays[name + ".positions"] = one.positions
        notes = {"model": model.name, "record": run.record, "ids": json.dumps(ids), "n_prompt": str(len(prompt))}
        if body.format == "arrow":
            return Response(arrays_as_arrow(arrays, notes), 200, headers, ARROW_MEDIA_TYPE)
        return Response(arrays_as_safetensors(arrays, notes), 200, headers, "application/octet-stream")
    tokens = await asyncio.to_thread(
        lambda: [{"id": token, "text": token_text(model.tokenizer, token)} for token in ids]
    )
    head = {"id": new_id("insp"), "object": "inspection", "model": model.name, "record": run.record}
    rest = {
        "n_prompt": len(prompt),
        "tokens": tokens,
        **document(progress, "base64" if body.format == "base64" else "lists"),
        "usage": usage_of(run),
    }
    return json_response({**head, **rest}, headers)


def _arrow_or_refused() -> None:
    """ApiError 400 before any work if this server has no pyarrow."""
    try:
        arrays_as_arrow({})
    except SettingsError as error:
        raise ApiError(400, "unsupported_parameter", f"format is arrow; {error}", param="format") from None


async def _documented(call: Call, model: Model, body: InspectionBody) -> Response:
    """As the command does: the model answers first, if it is to; then the text is read, and again if it is changed."""
    prompt = await _prompt(model, body)
    params = SamplingParams(max_tokens=body.max_tokens, stop_ids=model.tokenizer.eos_ids, seed=0)
    made = await _ran(call, model, Job(prompt, params)) if body.max_tokens else None
    ids = prompt if made is None else (*prompt, *made.progress[0].tokens)
    start, top = max(0, len(ids) - (body.window or 64)), body.top or 5
    run = await _ran(
        call,
        model,
        Job(
            ids,
            SamplingParams(max_tokens=0, seed=0),
            interventions=changes(body.interventions),
            picture=Picture(start, top),
        ),
    )
    found = run.progress[0].drawn
    assert found is not None, "a reading that ends well has its document"
    found["model"]["name"], found["n_prompt"] = model.name, len(prompt)
    headers = {"x-vitral-record": (made or run).record}
    if body.format == "html":
        return Response(await asyncio.to_thread(page, found), 200, headers, "text/html; charset=utf-8")
    return json_response(found, headers)


async def _ran(call: Call, model: Model, job: Job) -> Run:
    """One job to its end."""
    run = Run(call.service, call.caller, model, call.route.path, [job])
    async with run:
        await run.finish()
    return run


async def _prompt(model: Model, body: InspectionBody) -> tuple[int, ...]:
    if body.messages is not None:
        return (await prepare(model, plain_messages(body.messages))).prompt
    assert body.prompt is not None, "the body has one of both"
    return (await prompt_ids(model, body.prompt))[0]
