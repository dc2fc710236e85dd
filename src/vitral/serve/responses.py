"""OpenAI's `/v1/responses`: create, retrieve, cancel, delete; a response can go on from an earlier one.

Responses are stored per tenant unless `store` is false. A background response runs in this server; one that was
running when the server ended is "failed" afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from vitral.engine.request import SamplingParams, TokenScore
from vitral.engine.tool_parser import TextDelta
from vitral.errors import VitralError
from vitral.serve.call import Call, json_response
from vitral.serve.chat import token_logprobs
from vitral.serve.conversation import Prepared, Speaker, prepare
from vitral.serve.faults import ApiError, error_body, not_found, to_api
from vitral.serve.models import Model
from vitral.serve.paging import page
from vitral.serve.records import new_id
from vitral.serve.response_body import ResponseBody, items_of, plain_input
from vitral.serve.response_events import Narrator
from vitral.serve.run import Job, Run
from vitral.serve.sampling import notes, seeds
from vitral.serve.sse import EventStream, event
from vitral.serve.store import tables

__all__ = ["ResponseBody", "cancel", "create", "delete", "input_items", "retrieve"]


async def create(call: Call) -> Response:
    """Answer, and remember the answer."""
    body: ResponseBody = call.body
    model = call.service.models.get(body.model)
    if body.background and (body.stream or body.store is False):
        raise ApiError(400, "invalid_value", "background needs store, and cannot be streamed", param="background")
    if body.background and body.inspect is not None:
        raise ApiError(
            400, "invalid_value", "readings are not stored; ask for them without background", param="inspect"
        )
    if body.top_logprobs is not None and not body.include:
        why = 'top_logprobs needs "include": ["message.output_text.logprobs"]'
        raise ApiError(400, "invalid_value", why, param="top_logprobs")
    said = await _history(call, body) + plain_input(body.input)
    opening = [{"role": "system", "content": body.instructions}] if body.instructions else []
    prepared = await prepare(
        model,
        opening + said,
        body.text.format.form() if body.text and body.text.format else None,
        [tool.openai() for tool in body.tools] if body.tools else None,
        body.chosen(),
        parallel=body.parallel_tool_calls is not False,
    )
    answer = Answer(call, body, model, prepared, said)
    if body.background:
        response = answer.response("queued")
        await call.service.store.put(tables.responses, answer.id, call.caller.tenant, answer.stored(response))
        task = asyncio.create_task(answer.in_background())
        call.service.background[answer.id] = task
        task.add_done_callback(lambda _: call.service.background.pop(answer.id, None))
        return json_response(response)
    headers = {"x-vitral-record": answer.run.record}
    if body.stream:
        return await EventStream.begin(
            answer.stream(),
            lambda e: event(json.dumps({"type": "error", **error_body(to_api(e), "openai")["error"]}), "error"),
            headers,
            call.service.limits.stall_s,
        )
    return json_response(await answer.whole(), headers)


async def retrieve(call: Call) -> Response:
    """A stored response."""
    id = call.path["id"]
    stored = await _stored(call, id)
    response = stored["response"]
    if response["status"] in ("queued", "in_progress") and id not in call.service.background:
        message = "the server ended while it was at work on this; ask again"
        response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        await call.service.store.put(tables.responses, id, call.caller.tenant, stored)
    return json_response(response)


async def input_items(call: Call) -> Response:
    """What a stored response answered."""
    stored = await _stored(call, call.path["id"])
    items = [item for message in stored["said"] for item in items_of(message)]
    numbered = [{"id": f"item_{i}", "status": "completed", **item} for i, item in enumerate(items)]
    return json_response(page(numbered[::-1], call.query))


async def cancel(call: Call) -> Response:
    """End a background response within one step."""
    id = call.path["id"]
    stored = await _stored(call, id)
    if not stored["response"]["background"]:
        raise ApiError(
            400, "not_in_background", "only a background response can be cancelled; close the connection instead"
        )
    task = call.service.background.get(id)
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return await retrieve(call)


async def delete(call: Call) -> Response:
    """Forget a stored response."""
    id = call.path["id"]
    task = call.service.background.get(id)
    if task is not None and await call.service.store.get(tables.responses, id, call.caller.tenant) is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not await call.service.store.delete(tables.responses, id, call.caller.tenant):
        raise not_found("response", id)
    return json_response({"id": id, "object": "response.deleted", "deleted": True})


class Answer:
    """One response as it is made."""

    def __init__(
        self, call: Call, body: ResponseBody, model: Model, prepared: Prepared, said: list[dict[str, Any]]
    ) -> None:
        self.id = new_id("resp")
        self._call, self._body, self._model, self._said = call, body, model, said
        self._created = int(time.time())
        (seed,) = seeds(body.seed, 1)
        params = SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=seed,
            max_tokens=body.max_output_tokens,
            stop_ids=model.tokenizer.eos_ids,
            logprobs=(body.top_logprobs or 0) if body.include else None,
        )
        self.run = Run(
            call.service,
            call.caller,
            model,
            call.route.path,
            [Job(prepared.prompt, params, constraint=prepared.constraint, **body.looks(prepared.prompt))],
            notes(body),
        )
        self.speaker = Speaker(prepared, seed)
        self.narrator = Narrator()

    async def whole(self) -> dict[str, Any]:
        """All of it at once."""
        async with self.run:
            async for _ in self._told():
                pass
            return await self._keep(self.response(self._status())) | self._shown()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Its events."""
        async with self.run:
            for kind in ("created", "in_progress"):
                yield self.narrator.response(kind, self.response("in_progress"))
            async for data in self._told():
                yield data
            status = self._status()
            kept = await self._keep(self.response(status))
            yield self.narrator.response(status, kept | self._shown())

    async def _told(self) -> AsyncGenerator[bytes, None]:
        """The events between the first and the last, while the narrator keeps the items."""
        scores: list[TokenScore] = []
        async for piece in self.run.pieces():
            scores += piece.scores
            for delta in self.speaker.take(piece):
                said, scores = (scores, []) if isinstance(delta, TextDelta) else ([], scores)
                for data in self.narrator.delta(delta, token_logprobs(self._model.tokenizer, said)):
                    yield data
        for data in self.narrator.finish():
            yield data

    async def in_background(self) -> None:
        """Without a client that waits; the outcome is stored, whatever it is."""
        try:
            await self._keep(self.response("in_progress"))
            await self.whole()
        except VitralError as error:
            failed = self.response("failed")
            failed["error"] = {"code": "server_error", "message": str(to_api(error))}
            await self._keep(failed)
        except asyncio.CancelledError:
            await self._call.service.keep(self._keep(self.response("cancelled")))
            raise

    def response(self, status: str) -> dict[str, Any]:
        """The object that clients know."""
        body, done = self._body, status in ("completed", "incomplete", "cancelled")
        prompt, cached, completion = self.run.usage
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {"format": {"type": "text"}}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model.name,
            "output": self.narrator.items if done else [],
            "usage": usage if done else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "text": text,
            "tool_choice": body.tool_choice
            if isinstance(body.tool_choice, str)
            else "auto"
            if body.tool_choice is None
            else body.tool_choice.model_dump(),
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            "truncation": "disabled",
            "background": bool(body.background),
            "store": body.store is not False,
            "user": body.user,
            "seed": body.seed,
            "record": self.run.record,
        }

    def stored(self, response: dict[str, Any]) -> dict[str, Any]:
        """What the database keeps: the response, and the conversation up to and with it."""
        return {"created_at": self._created, "response": response, "said": self._said, "answer": self._spoken()}

    def _spoken(self) -> dict[str, Any]:
        spoken: dict[str, Any] = {"role": "assistant", "content": self.speaker.text}
        if self.speaker.calls:
            spoken["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.speaker.calls
            ]
        return spoken

    def _shown(self) -> dict[str, Any]:
        return self._body.shown(self.run.progress[0])

    def _status(self) -> str:
        return "incomplete" if self.run.progress[0].finish == "length" else "completed"

    async def _keep(self, response: dict[str, Any]) -> dict[str, Any]:
        if self._body.store is not False:
            await self._call.service.store.put(
                tables.responses, self.id, self._call.caller.tenant, self.stored(response)
            )
        return response


async def _stored(call: Call, id: str) -> dict[str, Any]:
    stored = await call.service.store.get(tables.responses, id, call.caller.tenant)
    if stored is None:
        raise not_found("response", id)
    return stored


async def _history(call: Call, body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation that a response goes on from."""
    if body.previous_response_id is None:
        return []
    stored = await _stored(call, body.previous_response_id)
    if stored["response"]["status"] not in ("completed", "incomplete"):
        status = stored["response"]["status"]
        raise ApiError(
            400, "invalid_value", f"the previous response is {status}; wait for it", param="previous_response_id"
        )
    return [*stored["said"], stored["answer"]]
