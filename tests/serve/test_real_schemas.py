"""Hundreds of real JSON schemas over HTTP: an answer that comes to its end parses and is valid; a refusal names what."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema

from tests.serve.conftest import CHAT
from tests.serve.live import Live, live, with_template
from tests.serve.real_schemas import real_schemas

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
TOGETHER = 8


def wanted() -> dict[str, dict[str, Any]]:
    """Every second description of the APIs, and every schema file."""
    found = real_schemas()
    described = [name for name in found if "/" not in name]
    return {name: schema for name, schema in found.items() if "/" in name or described.index(name) % 2 == 0}


def held(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def towards_an_end(server: Live, model: str) -> dict[str, int]:
    """A logit_bias without which an answer may go on for ever: most objects may have more keys."""
    bias = {}
    for text, push in {'"': 20, "}": 14, "]": 14, " ": -12, "\n": -12}.items():
        ids = server.post("/v1/tokenize", {"model": model, "text": text, "add_special": False}).json()["ids"]
        bias |= {str(id): push for id in ids}
    return bias


def check(name: str, schema: dict[str, Any], status: int, answer: Any) -> str:
    """How it ended; fails for an answer that is not what was promised."""
    if status == 400:
        message = answer["error"]["message"]
        named = re.search(r"JSON schema(, \S+)?: |the constraint cannot be honoured: \w", message)
        assert named, (name, message)
        return "refused"
    assert status == 200, (name, answer)
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        return "valid"
    assert choice["finish_reason"] == "length", name
    return "cut"


def test_two_hundred_and_more_real_schemas_are_obeyed_or_refused_by_name(tmp_path: Path, tiny_path: str) -> None:
    schemas = wanted()
    assert len(schemas) >= 250
    model = with_template(Path(tiny_path), tmp_path / "chat.gguf", TEMPLATE)
    with live(tmp_path, str(model)) as server:
        bias = towards_an_end(server, "chat.gguf")

        def ask(item: tuple[str, dict[str, Any]]) -> str:
            name, schema = item
            body = {
                "model": "chat.gguf",
                "messages": [{"role": "user", "content": "Once upon a time"}],
                "max_tokens": 400,
                "seed": 1,
                "logit_bias": bias,
                "response_format": held(schema),
            }
            answer = server.post("/v1/chat/completions", body)
            return check(name, schema, answer.status_code, answer.json())

        with ThreadPoolExecutor(TOGETHER) as pool:
            outcome = Counter(pool.map(ask, schemas.items()))
    assert outcome["valid"] >= 200, outcome
    assert outcome["cut"] <= len(schemas) // 20, outcome
    assert outcome["refused"] >= 1, outcome


def test_a_real_model_obeys_real_schemas_also_in_streams_and_tools(server: Live) -> None:
    small = {name: s for name, s in real_schemas().items() if len(json.dumps(s)) < 600 and "/" not in name}
    bias = towards_an_end(server, CHAT)
    outcome: Counter[str] = Counter()
    for name, schema in list(small.items())[::9][:8]:
        ask = [{"role": "user", "content": f"Give a short example of {name.rpartition('.')[2]} as JSON."}]
        asked = {"model": CHAT, "messages": ask, "max_tokens": 80, "temperature": 0, "logit_bias": bias}
        body = {**asked, "response_format": held(schema)}
        answer = server.post("/v1/chat/completions", body)
        outcome[check(name, schema, answer.status_code, answer.json())] += 1
        if answer.status_code == 200:
            events = list(server.events("/v1/chat/completions", body))
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
            assert text == answer.json()["choices"][0]["message"]["content"]
        tool = {"type": "function", "function": {"name": "make", "parameters": schema}}
        body = {**asked, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
        called = server.post("/v1/chat/completions", body)
        assert called.status_code == answer.status_code, called.text
        if called.status_code == 200 and called.json()["choices"][0]["finish_reason"] == "tool_calls":
            for call in called.json()["choices"][0]["message"]["tool_calls"]:
                jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
                outcome["called"] += 1
    assert outcome["valid"] >= 5, outcome
    assert outcome["called"] >= 5, outcome
