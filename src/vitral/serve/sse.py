"""Server-sent events to clients that may leave, stall, or read a byte a second.

The engine never waits for a reader: what is not read yet lies here, at most one answer's tokens. A reader that takes
nothing for `stall_s` is cut off.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Self, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vitral.errors import VitralError
from vitral.serve.faults import to_api

__all__ = ["EventStream", "event", "quoted", "until_disconnect"]

log = logging.getLogger("vitral.serve")

quoted = json.JSONEncoder(ensure_ascii=False).encode
"""A text as JSON; `json.dumps` with an option makes an encoder for each."""

T = TypeVar("T")
Events = AsyncGenerator[bytes, None]


def event(data: str, name: str | None = None) -> bytes:
    """One event on the wire.

    >>> event("[DONE]")
    b'data: [DONE]\\n\\n'
    """
    return (f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n").encode()


class EventStream(Response):
    """A response whose events are made while it is sent."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        rest: Events,
        failure: Callable[[VitralError], bytes],
        headers: dict[str, str],
        stall_s: float,
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._rest, self._failure, self._stall_s = first, rest, failure, stall_s

    @classmethod
    async def begin(
        cls,
        events: Events,
        failure: Callable[[VitralError], bytes],
        headers: dict[str, str],
        stall_s: float,
    ) -> Self:
        """Wait for the first event, so that what fails before it is an error with a status of its own."""
        try:
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        return cls(first, events, failure, headers, stall_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._pump(scope, send))
        finally:
            await self._rest.aclose()

    async def _pump(self, scope: Scope, send: Send) -> None:
        async def write(body: bytes, more: bool) -> None:
            reader.waited_since = loop.time()
            await send({"type": "http.response.body", "body": body, "more_body": more})
            reader.waited_since = None

        loop = asyncio.get_running_loop()
        reader = _Reader(loop, self._stall_s, scope["extensions"]["vitral.abort"]["call"])
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await write(self._first, True)
            try:
                async for data in self._rest:
                    await write(data, True)
            except VitralError as error:
                await write(self._failure(to_api(error)), True)
            await write(b"", False)
        finally:
            reader.leave()


class _Reader:
    """Cuts a connection off when a write has waited for `stall_s`.

    One timer looks four times in that span: a timer for each token would cost more than its encoding.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stall_s: float, abort: Callable[[], None]) -> None:
        self.waited_since: float | None = None
        self._loop, self._stall_s, self._abort = loop, stall_s, abort
        self._timer = loop.call_later(stall_s / 4, self._look)

    def _look(self) -> None:
        if self.waited_since is not None and self._loop.time() - self.waited_since >= self._stall_s:
            log.info("a reader took nothing for %g s and was cut off", self._stall_s)
            self._abort()
        else:
            self._timer = self._loop.call_later(self._stall_s / 4, self._look)

    def leave(self) -> None:
        self._timer.cancel()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Await `work` (a coroutine), or cancel it as soon as the client is gone; then the result is None."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        return None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
