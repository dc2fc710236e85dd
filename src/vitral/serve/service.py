"""All that a request may need, in one place that is made at start and handed to every route."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vitral.errors import ShuttingDown, VitralError
from vitral.provenance.digest import DigestCache
from vitral.serve.access import Caller, KeyRing
from vitral.serve.admission import Admission
from vitral.serve.body import Limits as BodyLimits
from vitral.serve.canary import Canary
from vitral.serve.metrics import Metrics
from vitral.serve.models import Models
from vitral.serve.records import Records
from vitral.serve.store import Store
from vitral.serve.traces import Traces

__all__ = ["Limits", "Service"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take. Times in seconds.

    answer_s: from start to end of an answer. stall_s: how long a reader may read nothing. drain_s: for running answers
    when the server is told to stop.
    """

    body: BodyLimits = BodyLimits()
    answer_s: float = 3600.0
    stall_s: float = 30.0
    drain_s: float = 30.0
    sequences: int = 128
    file_bytes: int = 64 << 20


class Stoppable(Protocol):
    """A running answer."""

    def stop(self, error: VitralError) -> None: ...


class BatchRunner(Protocol):
    """Works on batches."""

    def start(self, id: str, caller: Caller) -> None: ...

    async def cancel(self, id: str) -> None: ...

    def counts(self, id: str) -> dict[str, int] | None: ...

    async def resume(self, service: Service) -> None: ...

    async def pause(self) -> None: ...


@dataclass(slots=True)
class Service:
    """The parts of a running server."""

    models: Models
    keys: KeyRing
    records: Records
    admission: Admission
    metrics: Metrics
    folder: Path
    canary: Canary
    limits: Limits = Limits()
    traces: Traces | None = None
    runs: set[Stoppable] = field(default_factory=set)
    batches: BatchRunner = field(init=False)
    background: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    digests: DigestCache = field(default_factory=DigestCache)
    _kept: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def store(self) -> Store:
        """The database."""
        return self.records.store

    def stop(self, why: str) -> None:
        """End every running answer with a ShuttingDown, and every wait for a model."""
        self.models.residency.stop(why)
        for run in list(self.runs):
            run.stop(ShuttingDown(why))

    async def keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it to its end, even if whoever waits is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        await asyncio.shield(task)

    async def settle_all(self) -> None:
        """Wait for what is being kept."""
        while self._kept:
            await asyncio.gather(*self._kept, return_exceptions=True)
