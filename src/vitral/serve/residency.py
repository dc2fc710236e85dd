"""Which models are in memory: loaded when they are asked for, the one used longest ago out first.

Without a budget all are loaded at start and stay. With one, a model that is not there is loaded by the first request
for it; models that no request uses make room, and if that is not enough, the one used longest ago takes no new
requests until its running ones have ended. Pinned models stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, Protocol

from vitral.errors import Overloaded, SettingsError, ShuttingDown, VitralError
from vitral.serve.faults import ApiError

__all__ = ["Loadable", "Place", "Residency"]

log = logging.getLogger("vitral.serve")

ROOM_S = 60.0  # that a request waits for others' answers to end, so that its model finds room
_RETRY_S = 10


class Loadable(Protocol):
    """What is loaded and let go: an engine."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Place:
    """One model's place. `reserved` says its bytes; all that is counted here is of this server's life."""

    def __init__(
        self, residency: Residency, name: str, engine: Loadable, reserved: Callable[[], int], *, pinned: bool
    ) -> None:
        self.name, self.pinned = name, pinned
        self.users = 0
        self.loads = 0
        self.evictions = 0
        self.state: Literal["away", "here", "leaving"] = "away"
        self._residency, self._engine, self._reserved = residency, engine, reserved
        self._used = 0  # the residency's clock when a request came last
        self._waiting = 0
        self._loading: asyncio.Task[None] | None = None

    @property
    def reserved_bytes(self) -> int:
        """What it takes while it is loaded."""
        return self._reserved()

    @property
    def is_here(self) -> bool:
        """Whether it is in memory."""
        return self.state != "away"

    async def take(self) -> None:
        """Keep it in memory until `release`; loaded before, if need be.

        Raises Overloaded if others' answers leave no room in time, ApiError 503 with the reason if it cannot be loaded.
        """
        while self.state != "here":
            await self._loaded()
        self._used = self._residency.tick()
        self.users += 1

    def release(self) -> None:
        """One that took it needs it no more."""
        self.users -= 1
        self._residency.changed()

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Taken while the block runs."""
        await self.take()
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Not let go while the block runs, though it does not count as asked for."""
        self.users += 1
        try:
            yield
        finally:
            self.release()

    async def _loaded(self) -> None:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._residency.load(self))
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left
        self._waiting += 1
        try:
            await asyncio.shield(self._loading)  # whoever leaves does not stop what others wait for
        finally:
            self._waiting -= 1
            self._residency.changed()

    async def load(self) -> None:
        """For the residency: fetch it into memory."""
        await self._engine.start()
        self.loads += 1
        self.state = "here"
        self._used = self._residency.tick()

    async def let_go(self) -> None:
        """For the residency: give its memory back."""
        self.state = "away"
        self.evictions += 1
        await self._engine.close()

    @property
    def last_used(self) -> int:
        """For the residency: grows with every request."""
        return self._used

    @property
    def is_wanted(self) -> bool:
        """For the residency: whether somebody still waits for it."""
        return self._waiting > 0

    @property
    def is_new(self) -> bool:
        """For the residency: just loaded, and those who waited for it have not begun."""
        return self.state == "here" and self.is_wanted


class Residency:
    """All places under one budget of bytes; None for no limit."""

    def __init__(self, budget_bytes: int | None = None, room_s: float = ROOM_S) -> None:
        self.budget_bytes = budget_bytes
        self._room_s = room_s
        self._places: list[Place] = []
        self._clock = 0
        self._turn = asyncio.Lock()  # one model is loaded at a time, in the order of asking
        self._news = asyncio.Event()
        self._closed: str | None = None

    def add(self, name: str, engine: Loadable, reserved: Callable[[], int], *, pinned: bool = False) -> Place:
        """A place for a model that is not loaded yet."""
        place = Place(self, name, engine, reserved, pinned=pinned or self.budget_bytes is None)
        self._places.append(place)
        return place

    @property
    def used_bytes(self) -> int:
        """What the models in memory have reserved."""
        return sum(place.reserved_bytes for place in self._places if place.is_here)

    def check(self) -> None:
        """Raise SettingsError, with the figures, for a model that could never be loaded."""
        for place in self._places:
            wrong = self._impossible(place)
            if wrong is not None:
                raise SettingsError(f"{wrong}: raise it, say a smaller --context, or serve fewer models")

    async def start(self) -> None:
        """Load the pinned models, then the others in their order as long as they fit."""
        self.check()
        for place in sorted(self._places, key=lambda place: not place.pinned):
            if self.budget_bytes is None or self._fits(place.reserved_bytes):
                await place.load()

    async def load(self, place: Place) -> None:
        """Make room and load. Raises Overloaded, ShuttingDown, or ApiError 503 with the reason."""
        async with self._turn:
            if place.state == "here":
                return
            wrong = self._impossible(place)
            if wrong is not None:
                raise ApiError(503, "model_unavailable", wrong, param="model")
            if self.budget_bytes is not None:
                await self._make_room(place, self.budget_bytes)
            try:
                await place.load()
            except VitralError as error:
                log.error("%s cannot be loaded: %s", place.name, error)
                raise ApiError(
                    503, "model_unavailable", f"the model {place.name!r} cannot be loaded: {error}", param="model"
                ) from None
            log.info("%s is in memory; %s reserved", place.name, _mb(self.used_bytes))

    async def grow(self, place: Place) -> bool:
        """After a model in use has grown: make the others fit again. Whether they could."""
        async with self._turn:
            while not self._fits(0):
                idle = self._idle(place)
                if not idle:
                    return False
                await self._let_go(idle[0])
        return True

    def stop(self, why: str) -> None:
        """Whoever waits for room waits no longer."""
        self._closed = why
        self.changed()

    def changed(self) -> None:
        """Something may have become possible."""
        self._news.set()

    def tick(self) -> int:
        """The next moment of the clock by which use is ordered."""
        self._clock += 1
        return self._clock

    async def _make_room(self, newcomer: Place, budget: int) -> None:
        needed = newcomer.reserved_bytes
        end = asyncio.get_running_loop().time() + self._room_s
        try:
            while not self._fits(needed):
                if self._closed is not None:
                    raise ShuttingDown(self._closed)
                if not newcomer.is_wanted:
                    raise Overloaded("nobody waits for the model any more", _RETRY_S)
                idle = self._idle(newcomer)
                if idle:
                    await self._let_go(idle[0])
                    continue
                self._close_doors(self.used_bytes + needed - budget)
                self._news.clear()
                try:
                    async with asyncio.timeout_at(end):
                        await self._news.wait()
                except TimeoutError:
                    raise Overloaded(
                        f"{newcomer.name} needs {_mb(needed)}, and answers of other models hold the memory budget of "
                        f"{_mb(budget)}; come back in a while",
                        _RETRY_S,
                    ) from None
        finally:
            for place in self._places:
                if place.state == "leaving":
                    place.state = "here"

    def _impossible(self, place: Place) -> str | None:
        """Why the model could never be loaded, with the figures, if that is so."""
        if self.budget_bytes is None:
            return None
        others = sum(other.reserved_bytes for other in self._places if other.pinned and other is not place)
        if place.reserved_bytes + others <= self.budget_bytes:
            return None
        beside = f" beside the pinned models' {_mb(others)}" if others else ""
        return f"{place.name} needs {_mb(place.reserved_bytes)}{beside}; the memory budget is {_mb(self.budget_bytes)}"

    def _fits(self, more: int) -> bool:
        return self.budget_bytes is None or self.used_bytes + more <= self.budget_bytes

    def _idle(self, but: Place) -> list[Place]:
        """Models that may go at once, the one used longest ago first."""
        found = [
            p for p in self._places if p.is_here and not p.users and not p.is_new and not p.pinned and p is not but
        ]
        return sorted(found, key=lambda place: place.last_used)

    def _close_doors(self, lacking: int) -> None:
        """Those used longest ago take no new requests, as many as hold the bytes that are lacking."""
        for place in sorted(self._places, key=lambda place: place.last_used):
            if lacking > 0 and place.is_here and not place.is_new and not place.pinned:
                place.state = "leaving"
                lacking -= place.reserved_bytes

    async def _let_go(self, place: Place) -> None:
        await place.let_go()
        log.info("%s made room; %s reserved", place.name, _mb(self.used_bytes))


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
