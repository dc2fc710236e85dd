"""What a route's handler receives, and what a route declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from vitral.serve.access import Caller, Permission
from vitral.serve.body import Body
from vitral.serve.faults import Dialect
from vitral.serve.paging import Query
from vitral.serve.service import Service

__all__ = ["Call", "Handler", "Route", "json_response"]


@dataclass(frozen=True, slots=True)
class Call:
    """One verified request: `body` and `query` are checked, `path` holds the parts of the address that vary."""

    service: Service
    caller: Caller
    request: Request
    body: Any
    path: Mapping[str, str]
    route: Route
    query: Any = None


Handler = Callable[[Call], Coroutine[Any, Any, Response]]
Recorded = Literal["answer", "usage", "nothing"]


@dataclass(frozen=True, slots=True)
class Route:
    """A declaration: nothing here has a default that could be forgotten.

    permission: who may. scanned: the places in the body that hold a user's words, for what looks at them. recorded:
    "answer" writes a record with usage, "nothing" leaves no trace but a count. body: the parameters, None for none;
    "upload" for a multipart form. query: what may stand after the `?`.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    permission: Permission
    scanned: tuple[str, ...]
    recorded: Recorded
    body: type[Body] | Literal["upload"] | None
    dialect: Dialect = "openai"
    query: type[Query] = Query

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


def json_response(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Compact JSON, as it is."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Response(content, status, dict(headers or {}), "application/json")
