"""The description holds: whatever schemathesis makes of it, no request brings a 5xx."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from tests.serve.conftest import TINY
from tests.serve.live import Live
from vitral.serve.routes import ROUTES

MOST = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def test_no_request_brings_a_server_error(server: Live) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == len(ROUTES)
    statuses: set[int] = set()
    for operation in operations:

        @settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        @given(case=operation.as_strategy())
        def try_one(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                if "model" in case.body:
                    case.body["model"] = TINY  # else nothing gets beyond "there is no such model"
                case.body.update({name: 4 for name in MOST if isinstance(case.body.get(name), int)})
            response = case.call()
            statuses.add(response.status_code)
            assert response.status_code < 500, f"{case.method} {case.path}: {response.text}"
            assert response.status_code != 404 or "error" in response.json()

        try_one()
    assert {200, 400, 404} <= statuses
    assert server.process.poll() is None
