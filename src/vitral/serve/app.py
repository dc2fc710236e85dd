"""The ASGI application: each declared route behind one pipeline, and nothing else.

Pipeline of a request: caller, permission, body (size, time, JSON, parameters), handler; every error leaves in the
dialect of its route; a client that goes takes its work along.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Mounted
from starlette.types import ASGIApp, Receive, Scope, Send

from vitral.errors import SettingsError, VitralError
from vitral.serve.access import Caller
from vitral.serve.batches import Batches
from vitral.serve.body import read_json, validated
from vitral.serve.call import Call, Route, json_response
from vitral.serve.faults import ApiError, error_body, to_api
from vitral.serve.openapi import describe
from vitral.serve.paging import asked
from vitral.serve.routes import ROUTES
from vitral.serve.service import Service
from vitral.serve.sse import until_disconnect

__all__ = ["Server", "build_app"]

log = logging.getLogger("vitral.serve")
_OPENAPI = "/openapi.json"


class Declared(Mounted):
    """A route of the table, behind the pipeline."""

    def __init__(self, route: Route, service: Service) -> None:
        super().__init__(route.path, endpoint=_unused, methods=[route.method])
        self.declared = route
        self.app: ASGIApp = _Pipeline(route, service)


class Server(Starlette):
    """An application whose routes are the table's. Anything else is refused at start, with its path."""

    def __init__(self, service: Service, routes: Sequence[Route], mounted: Sequence[Any] | None = None) -> None:
        mounted = [Declared(route, service) for route in routes] if mounted is None else mounted
        for each in mounted:
            if not isinstance(each, Declared) or each.declared not in routes:
                raise SettingsError(
                    f"the route {getattr(each, 'path', each)!r} is not declared; add it to vitral.serve.routes with its "
                    "permission, what is scanned and what is recorded"
                )
        super().__init__(
            routes=mounted,
            exception_handlers={HTTPException: _no_route},
            lifespan=lambda app: _lifespan(service),
        )


def build_app(service: Service, routes: Sequence[Route] = ROUTES) -> Server:
    """The application over all declared routes and their description."""
    description = describe(routes)
    service.batches = Batches(tuple(routes))

    async def openapi(call: Call) -> Response:
        """This description."""
        return json_response(description)

    return Server(service, (*routes, Route("GET", _OPENAPI, openapi, "public", (), "nothing", None)))


class _Pipeline:
    def __init__(self, route: Route, service: Service) -> None:
        self._route, self._service = route, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answered: dict[str, int] = {}

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered["status"] = message["status"]
            await send(message)

        try:
            response = await self._respond(request, receive)
            if response is not None:
                await response(scope, receive, watched)
        finally:
            # 499: the client left before an answer began
            status = str(answered.get("status", 499))
            self._service.metrics.requests.labels(self._route.path, status).inc()

    async def _respond(self, request: Request, receive: Receive) -> Response | None:
        try:
            caller = self._caller(request)
            if self._route.recorded == "answer":
                self._service.admission.check()  # before a body is parsed and a template rendered in vain
            if self._route.body is None or self._route.body == "upload":
                return await self._route.handler(self._call(caller, request, None))
            data = await read_json(request, self._service.limits.body)
            answers = self._route.recorded == "answer"
            traces = self._service.traces
            with (
                self._service.admission.enter() if answers else contextlib.nullcontext(),
                traces.within(request.headers) if answers and traces is not None else contextlib.nullcontext(),
            ):
                body = validated(self._route.body, data)
                return await until_disconnect(receive, self._route.handler(self._call(caller, request, body)))
        except VitralError as error:
            api = to_api(error)
            if api.status >= 500:
                log.warning("%s %s: %d %s", self._route.method, self._route.path, api.status, api)
        except Exception as error:  # a bug of ours ends one request, not the server; the log has its traceback
            log.exception("%s %s failed", self._route.method, self._route.path)
            api = to_api(error)
        return json_response(error_body(api, self._route.dialect), api.headers, api.status)

    def _call(self, caller: Caller, request: Request, body: Any) -> Call:
        query = asked(self._route.query, request.query_params.multi_items())
        return Call(self._service, caller, request, body, request.path_params, self._route, query)

    def _caller(self, request: Request) -> Caller:
        if self._route.permission == "public":
            return Caller("public", frozenset(("public",)))
        if not len(self._service.keys) and not _is_loopback_name(request.headers.get("host", "")):
            # a page elsewhere whose name was pointed at this machine (DNS rebinding) must not reach a keyless server
            raise ApiError(
                403, "wrong_host", "without keys this server answers to localhost alone; check the Host header"
            )
        caller = self._service.keys.identify(request.headers)
        if self._route.permission not in caller.permissions:
            raise ApiError(403, "not_permitted", f"this key may not {self._route.permission}; ask for one that may")
        return caller


def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine.

    >>> _is_loopback_name("127.0.0.1:8000"), _is_loopback_name("[::1]:80"), _is_loopback_name("evil.example")
    (True, True, False)
    """
    name = host.rpartition(":")[0] if host.count(":") == 1 or host.rpartition(":")[0].endswith("]") else host
    name = name.strip("[]").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        api = ApiError(405, "method_not_allowed", f"{request.method} is not what {request.url.path} answers to")
    else:
        api = ApiError(
            error.status_code, "unknown_route", f"there is no route {request.method} {request.url.path[:200]}"
        )
    return json_response(error_body(api, "openai"), error.headers, api.status)


async def _unused(request: Request) -> Response:
    raise AssertionError("a declared route answers through its pipeline")


@contextlib.asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    await service.batches.resume(service)
    yield
    await service.batches.pause()
    for task in list(service.background.values()):
        task.cancel()
    await asyncio.gather(*service.background.values(), return_exceptions=True)
    await service.settle_all()
