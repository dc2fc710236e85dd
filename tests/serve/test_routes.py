from __future__ import annotations

from dataclasses import MISSING, fields

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Undeclared

from vitral.errors import SettingsError
from vitral.serve.app import Server
from vitral.serve.call import Route
from vitral.serve.openapi import describe
from vitral.serve.routes import ROUTES


def test_an_undeclared_route_cannot_be_mounted() -> None:
    stray = Undeclared("/v1/secret", lambda request: PlainTextResponse("hello"))
    with pytest.raises(SettingsError, match="/v1/secret"):
        Server(None, ROUTES, [stray])  # type: ignore[arg-type]


def test_a_route_must_say_who_may_what_is_scanned_and_what_is_recorded() -> None:
    needed = {field.name for field in fields(Route) if field.default is MISSING}
    assert {"permission", "scanned", "recorded", "body"} <= needed


def test_routes_that_generate_are_scanned_and_recorded() -> None:
    for route in ROUTES:
        if route.recorded == "answer":
            assert route.scanned, route.path
            assert route.permission == "infer"


def test_only_health_and_readiness_are_public() -> None:
    assert {route.path for route in ROUTES if route.permission == "public"} == {"/health", "/ready"}


def test_every_route_is_described() -> None:
    paths = describe(ROUTES)["paths"]
    assert sum(len(operations) for operations in paths.values()) == len(ROUTES)
    assert all(operation["summary"] for operations in paths.values() for operation in operations.values())
