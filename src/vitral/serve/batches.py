"""OpenAI's `/v1/batches`: many requests in a file, answered beside the others.

A batch goes on where it stopped, also after the server did: finished lines lie in a file beside the input. A line
without a seed gets one from the input's digest and its own id, so that running a batch again gives the same answers.

A line during which the engine died is tried again with no other line beside it, so that the one that ends engines is
told from those that were there by chance; after `MOST_LOST` deaths it gets the error, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from starlette.responses import Response

from vitral.errors import EngineLost, Overloaded, RecordStoreError, ShuttingDown, VitralError
from vitral.serve.access import Caller
from vitral.serve.body import Body, parse_json, validated
from vitral.serve.call import Call, Route, json_response
from vitral.serve.faults import ApiError, error_body, not_found, to_api
from vitral.serve.files import path_of, save
from vitral.serve.paging import page
from vitral.serve.records import new_id
from vitral.serve.sampling import Metadata
from vitral.serve.service import Service
from vitral.serve.store import tables

__all__ = ["BatchBody", "Batches", "cancel", "create", "list_batches", "one_batch"]

log = logging.getLogger("vitral.serve")
_appending = threading.Lock()

T = TypeVar("T")
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
MOST_LINES = 50_000
TOGETHER = 16  # lines at a time
MOST_LOST = 3  # deaths of the engine during one line
_SEEDED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class BatchBody(Body):
    """A file of lines {"custom_id", "method", "url", "body"}, all for one endpoint."""

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


async def create(call: Call) -> Response:
    """Take on a batch."""
    body: BatchBody = call.body
    file = await call.service.store.get(tables.files, body.input_file_id, call.caller.tenant)
    if file is None:
        raise not_found("file", body.input_file_id)
    data = await asyncio.to_thread(path_of(call.service, body.input_file_id).read_bytes)
    lines = _lines(data, body.endpoint)
    now = int(time.time())
    id = new_id("batch")
    batch = {
        "id": id,
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "in_progress",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "in_progress_at": now,
        "expires_at": now + 86400,
        "completed_at": None,
        "cancelled_at": None,
        "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        "metadata": body.metadata,
    }
    await call.service.store.put(tables.batches, id, call.caller.tenant, {**batch, "tenant": call.caller.tenant})
    call.service.batches.start(id, call.caller)
    return json_response(batch)


async def list_batches(call: Call) -> Response:
    """One's batches, newest first."""
    data = await call.service.store.newest(tables.batches, call.caller.tenant, 10_000)
    return json_response(page([_shown(call, each) for each in data], call.query))


async def one_batch(call: Call) -> Response:
    """How far a batch is."""
    return json_response(_shown(call, await _find(call)))


async def cancel(call: Call) -> Response:
    """Stop a batch; what is done stays."""
    batch = await _find(call)
    if batch["status"] == "in_progress":
        await call.service.batches.cancel(batch["id"])
        batch = await _find(call)
    return json_response(_shown(call, batch))


class Company:
    """Lines of all batches run beside each other; one under suspicion waits for them to end, and they for it."""

    def __init__(self) -> None:
        self._beside = 0
        self._alone = asyncio.Lock()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Be one of many, or the only one."""
        if alone:
            try:
                async with self._alone:
                    async with self._changed:
                        await self._changed.wait_for(lambda: not self._beside)
                    yield
            finally:
                await self._tell()
            return
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone.locked())
            self._beside += 1
        try:
            yield
        finally:
            self._beside -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Batches:
    """The batches at work in this server."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._routes = {route.path: route for route in routes if route.method == "POST"}
        self._service: Service | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._company = Company()
        self._counts: dict[str, dict[str, int]] = {}

    async def resume(self, service: Service) -> None:
        """Go on with what was not finished when the server ended."""
        self._service = service
        for batch in await service.store.newest(tables.batches, None, 10_000):
            if batch["status"] == "in_progress":
                self.start(batch["id"], Caller(batch["tenant"], frozenset(("infer",))))

    async def pause(self) -> None:
        """Stop; `resume` of the next server goes on."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def start(self, id: str, caller: Caller) -> None:
        """Work on a batch."""
        task = asyncio.create_task(self._work(id, caller))
        self._tasks[id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(id, None), self._counts.pop(id, None)))

    def counts(self, id: str) -> dict[str, int] | None:
        """How many lines of a batch at work are answered, and how many of them with an error."""
        return self._counts.get(id)

    async def cancel(self, id: str) -> None:
        """Stop a batch for good."""
        assert self._service is not None, "batches are resumed at start"
        task = self._tasks.get(id)
        if task is not None:
            task.cancel("cancelled")
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self, id: str, caller: Caller) -> None:
        service = self._service
        assert service is not None, "batches are resumed at start"
        batch = await service.store.get(tables.batches, id, caller.tenant)
        assert batch is not None, "a batch is stored before it starts"
        partial = path_of(service, id).with_suffix(".lines")
        try:
            data = await asyncio.to_thread(path_of(service, batch["input_file_id"]).read_bytes)
            lines = _lines(data, batch["endpoint"])
            salt = hashlib.sha256(data).digest()
            done = await asyncio.to_thread(_finished, partial)
            counts = self._counts[id] = _counted(done.values())
            room = asyncio.Semaphore(TOGETHER)

            async def one(line: dict[str, Any]) -> None:
                async with room:
                    answer = await self._answer(service, caller, batch["endpoint"], line, salt)
                    done[line["custom_id"]] = answer
                    counts["completed" if _is_good(answer) else "failed"] += 1
                    await _until_there_is_room(lambda: asyncio.to_thread(_append, partial, answer))

            status = "completed"
            try:
                async with asyncio.timeout(max(0.0, batch["expires_at"] - time.time())), asyncio.TaskGroup() as group:
                    for line in lines:
                        if line["custom_id"] not in done:
                            group.create_task(one(line))
            except TimeoutError:
                status = "expired"
            answers = [done.get(line["custom_id"]) or _expired(line) for line in lines]
            await _until_there_is_room(lambda: self._finish(service, caller, batch, answers, status))
        except asyncio.CancelledError as error:
            if "cancelled" in error.args:
                done = await asyncio.to_thread(_finished, partial)
                await service.keep(self._finish(service, caller, batch, list(done.values()), "cancelled"))
            raise
        except Exception as error:  # whatever it is: the batch says so, and the log has it whole
            log.exception("batch %s failed", id)
            batch |= {"status": "failed", "errors": {"object": "list", "data": [{"message": str(to_api(error))}]}}
            await service.store.put(tables.batches, id, caller.tenant, batch)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()

    async def _answer(
        self, service: Service, caller: Caller, endpoint: str, line: dict[str, Any], salt: bytes
    ) -> dict[str, Any]:
        """One line's answer; what the server cannot do right now is tried again, but what ends engines not for ever."""
        route = self._routes[endpoint]
        body = line["body"]
        if endpoint in _SEEDED and body.get("seed") is None:
            digest = hashlib.sha256(salt + line["custom_id"].encode()).digest()
            body = {**body, "seed": int.from_bytes(digest[:8], "big")}
        lost = 0
        while True:
            deaths = 0
            try:
                if body.get("stream") or body.get("background"):
                    raise ApiError(
                        400, "invalid_value", "a batch cannot be streamed, nor run in the background", param="stream"
                    )
                checked = validated(route.body, body)  # type: ignore[arg-type]
                async with self._company.entered(alone=lost > 0):
                    deaths = _deaths(service, body)
                    response = await route.handler(Call(service, caller, None, checked, {}, route))  # type: ignore[arg-type]
                return _result(line, 200, json.loads(bytes(response.body)))
            except EngineLost:
                lost += _deaths(service, body) > deaths
                if lost == MOST_LOST:
                    why = f"the engine ended {lost} times while it answered this line; it is not tried again"
                    return _result(line, 503, error_body(to_api(EngineLost(why)), "openai"))
                await asyncio.sleep(1)
            except (Overloaded, RecordStoreError):
                await asyncio.sleep(1)
            except ShuttingDown:
                await asyncio.sleep(3600)  # the server ends before; the next one tries this line again
            except VitralError as error:
                api = to_api(error)
                return _result(line, api.status, error_body(api, "openai"))

    async def _finish(
        self, service: Service, caller: Caller, batch: dict[str, Any], answers: list[dict[str, Any]], status: str
    ) -> None:
        good = [answer for answer in answers if _is_good(answer)]
        bad = [answer for answer in answers if not _is_good(answer)]
        for name, kept in (("output_file_id", good), ("error_file_id", bad)):
            if kept and batch[name] is None:  # else it was kept before the disk was full
                data = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in kept).encode()
                file = await save(service, caller.tenant, f"{batch['id']}_{name[:-8]}.jsonl", "batch_output", data)
                batch[name] = file["id"]
        batch |= {"status": status, f"{status}_at": int(time.time())}
        batch["request_counts"] |= _counted(answers)
        await service.store.put(tables.batches, batch["id"], caller.tenant, batch)


def _lines(data: bytes, endpoint: str) -> list[dict[str, Any]]:
    """The lines of an input file; ApiError names the first that is wrong."""
    lines: list[dict[str, Any]] = []
    ids: set[str] = set()
    for number, raw in enumerate(data.splitlines(), 1):
        if not raw.strip():
            continue
        where = f"line {number} of the input"
        line = parse_json(raw, 64)
        if not isinstance(line, dict) or line.keys() != {"custom_id", "method", "url", "body"}:
            raise ApiError(400, "invalid_file", f"{where} must have exactly custom_id, method, url and body")
        if line["method"] != "POST" or line["url"] != endpoint:
            raise ApiError(400, "invalid_file", f"{where} is not POST {endpoint}, the batch's endpoint")
        id = line["custom_id"]
        if not isinstance(id, str) or not 1 <= len(id) <= 512 or id in ids or not isinstance(line["body"], dict):
            raise ApiError(
                400, "invalid_file", f"{where} needs a custom_id of its own (1 to 512 characters) and an object"
            )
        ids.add(id)
        lines.append(line)
        if len(lines) > MOST_LINES:
            raise ApiError(400, "invalid_file", f"the input has more than the {MOST_LINES} lines allowed")
    if not lines:
        raise ApiError(400, "invalid_file", "the input has no lines")
    return lines


def _result(line: dict[str, Any], status: int, body: Any) -> dict[str, Any]:
    response = {"status_code": status, "request_id": body.get("record") or "", "body": body}
    return {"id": new_id("batch_req"), "custom_id": line["custom_id"], "response": response, "error": None}


def _expired(line: dict[str, Any]) -> dict[str, Any]:
    """What stands for a line that the batch's day was too short for."""
    error = {"code": "batch_expired", "message": "the batch's 24 h ended before this line was answered; ask again"}
    return {"id": new_id("batch_req"), "custom_id": line["custom_id"], "response": None, "error": error}


def _is_good(answer: dict[str, Any]) -> bool:
    return answer["response"] is not None and answer["response"]["status_code"] == 200


def _counted(answers: Iterable[dict[str, Any]]) -> dict[str, int]:
    good = [_is_good(answer) for answer in answers]
    return {"completed": sum(good), "failed": len(good) - sum(good)}


def _deaths(service: Service, body: dict[str, Any]) -> int:
    """How often the engine of a line's model has died; 0 for a model that is not served."""
    try:
        return service.models.get(str(body.get("model"))).engine.deaths
    except ApiError:
        return 0


def _finished(partial: Path) -> dict[str, dict[str, Any]]:
    """Lines that an earlier run wrote; a last one that was cut off is removed, so that others can follow."""
    found: dict[str, dict[str, Any]] = {}
    if partial.exists():
        data = partial.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(partial, len(whole))
        for raw in whole.splitlines():
            answer = json.loads(raw)
            found[answer["custom_id"]] = answer
    return found


def _append(partial: Path, answer: dict[str, Any]) -> None:
    """A line more, whole or not at all. Raises RecordStoreError if the disk is full."""
    with _appending:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab", buffering=0) as out:
                before = out.tell()
                line = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
                if out.write(line) != len(line):
                    os.truncate(partial, before)
                    raise RecordStoreError("the batch's answers cannot be kept: the disk is full")
        except OSError as error:
            raise RecordStoreError(f"the batch's answers cannot be kept: {error.strerror}") from error


async def _until_there_is_room(work: Callable[[], Awaitable[T]]) -> T:
    """Do it, and again while the disk is full: a batch has a day."""
    while True:
        try:
            return await work()
        except RecordStoreError as error:
            log.warning("a batch waits: %s", error)
            await asyncio.sleep(1)


def _shown(call: Call, batch: dict[str, Any]) -> dict[str, Any]:
    counts = batch["request_counts"] | (call.service.batches.counts(batch["id"]) or {})
    return {name: value for name, value in batch.items() if name != "tenant"} | {"request_counts": counts}


async def _find(call: Call) -> dict[str, Any]:
    found = await call.service.store.get(tables.batches, call.path["id"], call.caller.tenant)
    if found is None:
        raise not_found("batch", call.path["id"])
    return found
