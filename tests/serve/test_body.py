from __future__ import annotations

import pytest

from tests.serve.conftest import TINY
from tests.serve.live import Live
from vitral.serve.body import parse_json
from vitral.serve.faults import ApiError

GOOD = b'{"model": "stories260K.bin", "prompt": "a", "max_tokens": 1}'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[" * 100_000, 400, "too_deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, 400, "too_deep"),
        (GOOD[:-1] + b', "model": "other"}', 400, "duplicate_key"),
        (b'{"prompt": "\xff"}', 400, "invalid_utf8"),
        (b'{"model": "x", "prompt": "\\ud800"}', 400, "invalid_unicode"),
        (b'{"model": "x", "prompt": "a", "temperature": NaN}', 400, "invalid_json"),
        (b'{"model": "x", "prompt": "a", "temperature": 1e999}', 400, "invalid_value"),
        (b'{"model": "x", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b"[1]", 400, "invalid_type"),
        (b" " * (9 << 20), 413, "body_too_large"),
    ],
    ids=["empty", "open", "deep", "deep-object", "twice", "utf8", "surrogate", "nan", "inf", "digits", "list", "huge"],
)
def test_hostile_json_is_refused_by_name(server: Live, body: bytes, status: int, code: str) -> None:
    response = server.post("/v1/completions", body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert server.post("/v1/completions", GOOD).status_code == 200


def test_brackets_in_strings_are_no_depth() -> None:
    assert parse_json(b'{"a": "' + b"[" * 1000 + b'\\"{"}', 64) == {"a": "[" * 1000 + '"{'}
    with pytest.raises(ApiError, match="nested"):
        parse_json(b"[" * 65 + b"]" * 65, 64)


def test_another_content_type_is_refused(server: Live) -> None:
    response = server.http.post("/v1/completions", content=GOOD, headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_a_foreign_host_name_does_not_reach_a_keyless_server(server: Live) -> None:
    response = server.http.get("/v1/models", headers={"host": "evil.example"})
    assert response.status_code == 403
    assert server.http.get("/v1/models").json()["data"][0]["id"] == TINY
