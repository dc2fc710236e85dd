"""Spans of answers, by OpenTelemetry's own in-memory exporter, under its own names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vitral.errors import SettingsError
from vitral.serve.routes import ROUTES
from vitral.serve.traces import NEWEST, OPERATIONS, exporting, names


def traced(tiny_path: str, folder: Path, version: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.serve.traced", tiny_path, str(folder), version]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in told, told
    return told


def test_each_answer_is_a_span_with_the_conventions_names(tiny_path: str, tmp_path: Path) -> None:
    told = traced(tiny_path, tmp_path, NEWEST)
    assert [status for status, _ in told["answers"]] == [200, 200, 200, 400]
    assert told["schemas"] == ["https://opentelemetry.io/schemas/1.44.0"]
    first, second, embedding, refused, left = told["spans"]
    for span, (_, record) in zip(told["spans"][:3], told["answers"], strict=False):
        assert span["attributes"]["vitral.record"] == record
        assert span["kind"] == "SpanKind.SERVER"
        assert span["attributes"]["gen_ai.provider.name"] == "vitral"
    attributes = first["attributes"]
    assert first["name"] == "text_completion stories260K.bin"
    assert first["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"  # the client's trace goes on
    assert first["parent_id"] == "0xb7ad6b7169203331"
    assert attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.request.seed"] == -1
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < 60
    assert second["parent_id"] is None
    assert second["attributes"]["gen_ai.request.stop_sequences"] == ["zzz"]
    assert second["attributes"]["gen_ai.request.top_k"] == 5
    assert embedding["attributes"]["gen_ai.operation.name"] == "embeddings"
    assert "gen_ai.request.temperature" not in embedding["attributes"]
    assert refused["status"]["status_code"] == "ERROR"
    assert refused["attributes"]["error.type"] == "ContextOverflow"
    assert left["attributes"]["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert left["status"]["status_code"] == "UNSET"  # that a client leaves is no error of ours
    assert 1 <= left["attributes"]["gen_ai.usage.output_tokens"] < 400
    assert "SECRET" not in json.dumps(told["spans"])


def test_older_conventions_get_the_names_that_they_had(tiny_path: str, tmp_path: Path) -> None:
    told = traced(tiny_path, tmp_path, "1.28")
    attributes = told["spans"][0]["attributes"]
    assert attributes["gen_ai.system"] == "vitral"
    assert attributes["gen_ai.openai.request.seed"] == -1
    assert "gen_ai.provider.name" not in attributes
    assert told["schemas"] == ["https://opentelemetry.io/schemas/1.28.0"]


def test_the_newest_names_are_those_of_the_package() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
    from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
    from opentelemetry.semconv.schemas import Schemas

    known = {value for key, value in vars(gen_ai_attributes).items() if key.startswith("GEN_AI_")} | {ERROR_TYPE}
    found = dict(names(NEWEST))
    assert found.pop("schema_url") in {schema.value for schema in Schemas}
    assert set(found.values()) <= known
    assert set(names("1.28")) <= set(names(NEWEST))


def test_every_route_that_answers_has_an_operation() -> None:
    assert set(OPERATIONS) == {route.path for route in ROUTES if route.recorded == "answer"}


def test_conventions_that_are_not_known_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"'9.9' are not known; allowed: 1.28, 1.44"):
        exporting("http://127.0.0.1:4318", "9.9")
