"""The server's process: what it opens, how it listens, how it stops.

SIGTERM and Ctrl-C drain: `/ready` says no at once, new work is refused, running answers have `drain_s` to finish, the
rest get a typed end, and the exit code is 0. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitral.errors import RecordStoreError, SettingsError
from vitral.serve.access import KeyRing
from vitral.serve.admission import Admission
from vitral.serve.app import build_app
from vitral.serve.canary import Canary
from vitral.serve.metrics import Metrics
from vitral.serve.models import Model, Models
from vitral.serve.native_worker import WorkerOptions
from vitral.serve.open_native import check_budget, open_native
from vitral.serve.records import Content, Records
from vitral.serve.remote import RemoteOptions, open_remote
from vitral.serve.residency import Residency
from vitral.serve.service import Limits, Service
from vitral.serve.store import Store
from vitral.serve.traces import Traces

__all__ = ["ServerOptions", "serve"]

log = logging.getLogger("vitral.serve")

IDLE_S = 15.0  # for a connection to send a request's head
SEND_BYTES = 256 << 10  # that the kernel holds for a reader; what it does not take, we notice
RECORDS_KEPT = 60.0  # seconds between two looks at what retention removes


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `vitral serve` was asked for. queue_tokens, queue_requests: the work taken on at once, None for our choice.

    memory_budget: bytes that all engines together may take, None for no limit. pinned: models, named as in `models`,
    that stay in memory. engines: models that other servers compute. traces: where spans go, None for nowhere.
    """

    models: Sequence[WorkerOptions]
    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    records_url: str | None = None
    records_bytes: int | None = None
    content: Content = "ids"
    keep_days: int | None = None
    queue_tokens: int | None = None
    queue_requests: int = 128
    limits: Limits = field(default_factory=Limits)
    memory_budget: int | None = None
    pinned: frozenset[str] = frozenset()
    engines: Sequence[RemoteOptions] = ()
    traces: Traces | None = None


def serve(options: ServerOptions, on_listening: Callable[[str], None] = lambda url: None) -> int:
    """Run until told to stop. `on_listening` hears the address. Returns the exit code."""
    return asyncio.run(_serve(options, on_listening))


async def _serve(options: ServerOptions, on_listening: Callable[[str], None]) -> int:
    keys = KeyRing(options.folder / "keys.json")
    if not len(keys) and not _is_loopback(options.host):
        raise SettingsError(
            f"{options.host} can be reached from other machines and there is no API key; "
            "make one with 'vitral serve --new-key NAME', or listen on 127.0.0.1"
        )
    url = options.records_url or f"sqlite:///{options.folder / 'records.sqlite'}"
    store = Store(url, options.records_bytes)
    try:
        records = Records(store, options.content, options.keep_days)
        if options.memory_budget is not None:
            check_budget(options.memory_budget)
        residency = Residency(options.memory_budget)
        models = [open_native(each, residency, pinned=each.model in options.pinned) for each in options.models]
        models += [open_remote(each, residency) for each in options.engines]
        _check_names(models)
        try:
            await residency.start()
            room = sum(model.facts.cache_tokens or 4 * model.facts.context_length for model in models)
            service = Service(
                models=Models(models, residency),
                keys=keys,
                records=records,
                admission=Admission(options.queue_tokens or 4 * room, options.queue_requests),
                metrics=Metrics(),
                folder=options.folder,
                canary=Canary(),
                limits=options.limits,
                traces=options.traces,
            )
            return await Listener(service, options, on_listening).run()
        finally:
            await asyncio.gather(*(model.engine.close() for model in models))
    finally:
        store.close()
        if options.traces is not None:
            await asyncio.to_thread(options.traces.close)


def _check_names(models: Sequence[Model]) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"{', '.join(twice)} would be served twice; give each model a name of its own")


class Listener(uvicorn.Server):
    """uvicorn's loop with our way to stop."""

    def __init__(self, service: Service, options: ServerOptions, on_listening: Callable[[str], None]) -> None:
        self._service, self._options, self._on_listening = service, options, on_listening
        _raise_open_files()
        super().__init__(
            uvicorn.Config(
                build_app(service),
                host=options.host,
                port=options.port,
                http=_protocol(service),
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody reads them here, and each token would pass through
                timeout_keep_alive=IDLE_S,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=32 << 10,
            )
        )
        self._drained: asyncio.Task[None] | None = None

    async def run(self) -> int:  # type: ignore[override]
        """Listen until stopped; 0, or 1 if the address cannot be had."""
        tidy = asyncio.create_task(self._tidy())
        try:
            await self.serve()
        except SystemExit:  # uvicorn's way to say that it cannot listen
            raise SettingsError(
                f"{self._options.host}:{self._options.port} cannot be listened on; is another server there? try --port 0"
            ) from None
        finally:
            tidy.cancel()
        return 0

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._on_listening(f"http://{shown}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave now. uvicorn would raise the signal again and so spoil the exit code."""
        if self._drained is None:
            self._service.admission.draining = True
            self._drained = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._service.stop("the server was told to stop at once")
            self.should_exit = True

    async def _drain(self) -> None:
        admission, limit_s = self._service.admission, self._options.limits.drain_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while admission.requests:
                    await asyncio.sleep(0.02)
        if admission.requests:
            self._service.stop(f"the server is shutting down and the answer did not end within {limit_s:g} s")
            await self._service.settle_all()
        self.should_exit = True

    async def _tidy(self) -> None:
        records = self._service.records
        while True:
            try:
                await records.forget()
                await records.release_abandoned(2 * self._options.limits.answer_s)
            except RecordStoreError as error:  # such as a full disk: said, and tried again
                log.warning("old records stay for now: %s", error)
            await asyncio.sleep(RECORDS_KEPT)


def _protocol(service: Service) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        """HTTP/1.1 that ends connections which send no request, and can drop a reader that does not read."""

        _idle: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")  # else the kernel holds 4 MB for whoever does not read
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
            service.metrics.connections.inc()
            self._idle = self.loop.call_later(IDLE_S, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            service.metrics.connections.dec()
            if self._idle is not None:
                self._idle.cancel()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._idle is None:
                self._idle = self.loop.call_later(IDLE_S, self.transport.abort)
            self.scope["extensions"] = {"vitral.abort": {"call": self._cut}}

        def _cut(self) -> None:
            """End the connection, and let go at once what the kernel still holds for a reader that does not read."""
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

        def on_headers_complete(self) -> None:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            super().on_headers_complete()

    return Protocol


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _raise_open_files() -> None:
    """As many open files as this user may have: idle connections shall not use them up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
