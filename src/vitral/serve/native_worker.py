"""The native engine in a process of its own, and what happens when that process dies.

It is spawned, never forked, with one end of a socket pair. If it ends, every request in flight gets an EngineLost and
a new process is started at once; a worker that dies again and again is started after growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitral.errors import EngineLost, VitralError
from vitral.model.law import KV_DEFAULT
from vitral.serve.engines import Ask, Ended, Facts, OnEvent
from vitral.serve.wire import ask_to, error_from, event_from, frame, read_frame

__all__ = ["NativeWorker", "WorkerOptions"]

log = logging.getLogger("vitral.serve")

LONGEST_PAUSE_S = 10.0
GOODBYE_S = 5.0  # to leave by itself once the connection is closed


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What `vitral.load` is called with in the worker, and the adapters (name, path) to load then."""

    model: str
    threads: int | None = None
    context_length: int | None = None
    kv_type: str = KV_DEFAULT
    isa: str | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    memory_bytes: int | None = None


class NativeWorker:
    """A ModelEngine in another process. `expected`: its facts before it has been loaded for the first time."""

    def __init__(self, options: WorkerOptions, expected: Facts | None = None) -> None:
        self.options = options
        self._deaths = 0
        self._facts = expected
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, OnEvent] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._guard: asyncio.Task[None] | None = None

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            raise EngineLost("the model has not been loaded yet; try again in a moment")
        return self._facts

    @property
    def is_up(self) -> bool:
        return self._writer is not None

    @property
    def deaths(self) -> int:
        return self._deaths

    @property
    def pid(self) -> int | None:
        """The worker's process id while it is up."""
        return self._process.pid if self._process is not None and self.is_up else None

    async def start(self) -> None:
        reader = await self._spawn()
        self._guard = asyncio.create_task(self._watch(reader))

    async def close(self) -> None:
        self._lose("the model was unloaded")
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
            self._guard = None
        await self._reap()

    def submit(self, ask: Ask, on_event: OnEvent) -> int:
        if self._writer is None:
            raise EngineLost("the engine is restarting; try again in a few seconds")
        self._next += 1
        self._asked[self._next] = on_event
        self._writer.write(frame({"number": self._next, "ask": ask_to(ask)}))
        return self._next

    def cancel(self, number: int) -> None:
        if number in self._asked and self._writer is not None:
            self._writer.write(frame({"cancel": number}))

    async def load_adapter(self, name: str, path: str) -> str:
        digest, n_bytes, base = await self._told("load", name, path)
        self.options = replace(self.options, adapters=(*self.options.adapters, (name, path)))
        facts = self.facts
        self._facts = replace(
            facts,
            adapters={**facts.adapters, name: str(digest)},
            bases={**facts.bases, name: base},
            memory={**facts.memory, f"adapter:{name}": int(n_bytes)},
        )
        return str(digest)

    async def unload_adapter(self, name: str) -> None:
        self.options = replace(self.options, adapters=tuple(each for each in self.options.adapters if each[0] != name))
        facts = self.facts
        self._facts = replace(
            facts,
            adapters={k: v for k, v in facts.adapters.items() if k != name},
            bases={k: v for k, v in facts.bases.items() if k != name},
            memory={k: v for k, v in facts.memory.items() if k != f"adapter:{name}"},
        )
        if self._guard is not None:  # else it is not loaded, and will be without it
            await self._told("unload", name)

    async def _told(self, what: str, *about: str) -> Any:
        if self._writer is None:
            raise EngineLost("the engine is restarting; try again in a few seconds")
        self._next += 1
        number, reply = self._next, asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        self._writer.write(frame({what: [number, *about]}))
        try:
            return await reply
        finally:
            self._replies.pop(number, None)

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vitral.serve.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(frame(asdict(self.options)))
        message = await read_frame(reader)
        if message is None or "ready" not in message:
            writer.close()
            await self._reap()
            raise EngineLost("the worker ended while loading") if message is None else error_from(message["failed"])
        self._facts = _facts(message["ready"])
        self._writer = writer
        return reader

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Hand out events while the worker lives; bring it back when it does not."""
        pause_s = 0.0
        while True:
            try:
                while (message := await read_frame(reader)) is not None:
                    pause_s = 0.0
                    self._deliver(message["events"])
                    self._answer(message["replies"])
            except VitralError as error:
                log.error("the worker is no longer understood: %s", error)
            self._lose("the engine stopped while it answered; it is being restarted, try again in a few seconds")
            self._deaths += 1
            await self._reap()
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s or 0.5)
                try:
                    reader = await self._spawn()
                    break
                except (VitralError, OSError) as error:
                    log.error("the worker does not come back: %s", error)

    def _deliver(self, events: list[list[Any]]) -> None:
        for number, *data in events:
            on_event = self._asked.get(number)
            event = event_from(data)
            if isinstance(event, Ended):
                self._asked.pop(number, None)
            if on_event is not None:
                on_event(event)

    def _answer(self, replies: list[list[Any]]) -> None:
        for number, result, error in replies:
            reply = self._replies.get(number)
            if reply is not None and not reply.done():
                if error is None:
                    reply.set_result(result)
                else:
                    reply.set_exception(error_from(error))

    def _lose(self, why: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        asked, self._asked = self._asked, {}
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(EngineLost(why))
        for on_event in asked.values():
            on_event(Ended("error", error=EngineLost(why)))

    async def _reap(self) -> None:
        """Wait for the process; end it if it does not leave."""
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), GOODBYE_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _facts(data: dict[str, Any]) -> Facts:
    return Facts(**{**data, "can": frozenset(data["can"])})
