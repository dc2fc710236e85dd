"""What may go wrong does, each time in a server of its own: nothing is lost, nothing lies, everyone hears the truth."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import TINY
from tests.serve.live import Live, live, metric, wait_until, with_template
from vitral.model.spec import ModelSpec

LONG = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 490, "temperature": 1.0, "seed": 1}
SHORT = {**LONG, "max_tokens": 4}


@pytest.fixture
def start(tmp_path: Path, tiny_path: str) -> Iterator[Callable[..., Live]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(live(tmp_path, tiny_path, *arguments))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_path: str) -> Iterator[Live]:
    """One server for all that leaves it as it was."""
    with live(tmp_path_factory.mktemp("calm"), tiny_path) as server:
        yield server


def sent(server: Live, data: bytes) -> socket.socket:
    at = urlsplit(server.url)
    connection = socket.create_connection((at.hostname, at.port), timeout=30)
    connection.sendall(data)
    return connection


def request(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def test_killing_the_worker_in_mid_stream_is_told_and_healed(start: Callable[..., Live]) -> None:
    server = start()
    before = server.post("/v1/completions", SHORT).json()["choices"]
    (worker,) = server.workers()
    events = []
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        record = response.headers["x-vitral-record"]
        for line in response.iter_lines():
            if line:
                events.append(line.removeprefix("data: "))
                if len(events) == 2:
                    os.kill(worker, signal.SIGKILL)
    assert json.loads(events[-1])["error"]["code"] == "engine_lost"  # and no [DONE]
    assert server.http.get("/health").status_code == 503
    refused = server.post("/v1/completions", SHORT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_lost")
    assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: server.http.get("/health").status_code == 200)
    assert server.post("/v1/completions", SHORT).json()["choices"] == before
    assert metric(server, f'vitral_engine_deaths_total{{model="{TINY}"}}') == 1
    sequence = server.http.get(f"/v1/records/{record}").json()["sequences"][0]
    assert sequence["finish"] == "error"
    assert server.post(f"/v1/records/{record}/replay", {}).json()["verdict"] == "EXACT"


def test_sigterm_lets_a_running_answer_finish_and_refuses_new_work(start: Callable[..., Live]) -> None:
    server = start()
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=server.url) as other:
            wait_until(lambda: other.get("/ready").status_code == 503)
            refused = other.post("/v1/completions", json=SHORT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_shutdown")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(30) == 0


def test_sigterm_ends_what_takes_too_long_with_a_typed_event(start: Callable[..., Live]) -> None:
    server = start("--drain", "0")
    with server.http.stream("POST", "/v1/completions", json={**LONG, "n": 8, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "server_shutdown"
    assert server.process.wait(30) == 0


def test_a_full_disk_refuses_answers_and_says_why(start: Callable[..., Live], tmp_path: Path) -> None:
    size = 1 << 17
    server = start("--records-bytes", str(size))
    codes = []
    for _ in range(200):
        response = server.post("/v1/completions", SHORT)
        codes.append(response.status_code)
        if response.status_code != 200:
            break
    assert codes[0] == 200
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "record_store_unavailable"
    assert server.http.get("/health").status_code == 200
    assert (tmp_path / "records.sqlite").stat().st_size <= size


def test_a_reader_that_reads_nothing_holds_neither_engine_nor_others(calm: Live) -> None:
    server = calm
    at = urlsplit(server.url)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect((at.hostname, at.port))
    slow.sendall(request({**LONG, "n": 4, "logprobs": 20, "stream": True}))
    slow.recv(1)  # a byte a second
    assert server.post("/v1/completions", SHORT).status_code == 200
    done = f'vitral_tokens_total{{kind="completion",model="{TINY}"}}'
    # the engine comes to the end of all four, though nobody reads them; the place is given back when they are read
    assert slow.recv(1)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    slow.close()  # RST
    wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 0)
    assert metric(server, done) >= 4


def test_a_client_that_leaves_ends_its_work_at_once(calm: Live) -> None:
    server = calm
    for body in ({**LONG, "n": 8}, {**LONG, "n": 8, "stream": True}):
        connection = sent(server, request(body))
        wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 8)
        connection.close()
        began = time.monotonic()
        wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 0)
        assert time.monotonic() - began < 5


def test_a_prompt_of_200_000_tokens_is_refused_with_the_counts(calm: Live) -> None:
    server = calm
    response = server.post("/v1/completions", {**SHORT, "prompt": [5] * 200_000})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "200000" in response.json()["error"]["message"]
    assert server.post("/v1/completions", SHORT).status_code == 200


def test_more_than_it_takes_on_is_refused_at_once_and_works_later(start: Callable[..., Live]) -> None:
    server = start("--queue-tokens", "1100")
    held = [sent(server, request(LONG)) for _ in range(2)]
    wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 2)
    began = time.monotonic()
    refused = server.post("/v1/completions", {**SHORT, "max_tokens": 200})
    assert refused.status_code == 429
    assert time.monotonic() - began < 1
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    for connection in held:
        connection.close()
    wait_until(lambda: server.post("/v1/completions", SHORT).status_code == 200)


def test_a_looping_template_ends_its_own_request_alone(tmp_path: Path, tiny_path: str) -> None:
    from vitral.formats.gguf import GgufFile

    looping = "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{% endfor %}{% endfor %}"
    path = with_template(Path(tiny_path), tmp_path / "loop.gguf", looping)
    assert GgufFile.open(path).metadata["tokenizer.chat_template"] == looping
    with live(tmp_path, str(path)) as server:
        body = {"model": "loop.gguf", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        with ThreadPoolExecutor(1) as pool:
            looped = pool.submit(server.post, "/v1/chat/completions", body)
            with httpx.Client(base_url=server.url, timeout=60) as other:
                answer = other.post("/v1/completions", json={**SHORT, "model": "loop.gguf"})
            assert answer.status_code == 200
            assert looped.result().status_code == 400
            assert "template" in looped.result().json()["error"]["message"]


def test_off_loopback_it_does_not_start_without_a_key(tmp_path: Path, tiny_path: str) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "vitral", "serve", tiny_path, "--host", "0.0.0.0", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "--new-key" in done.stderr


def test_keys_part_tenants_and_the_prefix_cache(tmp_path: Path, tiny_path: str) -> None:
    from vitral.serve.access import KeyRing

    ring = KeyRing(tmp_path / "keys.json")
    anna, bob = ({"authorization": f"Bearer {ring.add(name)}"} for name in ("anna", "bob"))
    with live(tmp_path, tiny_path) as server:
        assert server.http.get("/v1/models").status_code == 401
        assert server.http.get("/v1/models", headers={"authorization": "Bearer vk-wrong"}).status_code == 401
        both = {**anna, "x-api-key": "vk-other"}
        assert server.http.get("/v1/models", headers=both).status_code == 400
        body = {**SHORT, "prompt": "Once upon a time there was a little girl. " * 8}

        def cached(key: dict[str, str]) -> int:
            usage = server.post("/v1/completions", body, **key).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert cached(anna) == 0
        assert cached(anna) > 0
        assert cached(bob) == 0  # what Anna's prompts left there is not found, nor can it be timed
        record = server.post("/v1/completions", SHORT, **anna).json()["record"]
        assert server.http.get(f"/v1/records/{record}", headers=anna).status_code == 200
        assert server.http.get(f"/v1/records/{record}", headers=bob).status_code == 404
        stored = (tmp_path / "keys.json").read_text("utf-8")
        assert anna["authorization"].removeprefix("Bearer ") not in stored


def test_an_adapter_is_a_model_of_its_own_in_the_same_batch(tmp_path: Path, tiny_path: str) -> None:
    from tests.formats.test_adapters import random_parts, write_peft
    from vitral.formats.checkpoint import open_checkpoint

    spec = open_checkpoint(Path(tiny_path)).spec
    path = write_peft(tmp_path / "lora", random_parts(spec, rank=4, scale=2.0), {"r": 4, "lora_alpha": 8})
    with live(tmp_path, tiny_path, "--adapter", f"paint={path}") as server:
        assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == [TINY, f"{TINY}:paint"]
        bodies = [{**SHORT, "max_tokens": 12, "temperature": 0, "model": name} for name in (TINY, f"{TINY}:paint")] * 4
        alone = [server.post("/v1/completions", body).json() for body in bodies[:2]]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda body: server.post("/v1/completions", body).json(), bodies))
        texts = [answer["choices"][0]["text"] for answer in alone]
        assert texts[0] != texts[1]
        assert [answer["choices"][0]["text"] for answer in together] == texts * 4
        assert alone[0]["system_fingerprint"] != alone[1]["system_fingerprint"]
        record = alone[1]["record"]
        assert server.http.get(f"/v1/records/{record}").json()["model"]["adapter"] is not None
        assert server.post(f"/v1/records/{record}/replay", {}).json()["verdict"] == "EXACT"
        unknown = server.post("/v1/completions", {**SHORT, "model": f"{TINY}:other"})
        assert unknown.status_code == 404


def refusals(folder: Path, spec: ModelSpec) -> dict[Path, str]:
    """Adapters that do not fit a model, and what each refusal says."""
    from tests.formats.test_adapters import random_parts, write_adapter_gguf, write_peft

    config = {"r": 4, "lora_alpha": 8}
    deep, wide = replace(spec, n_layers=spec.n_layers + 1), replace(spec, hidden_dim=2 * spec.hidden_dim)
    deeper = random_parts(deep, rank=4)
    wider = random_parts(wide, rank=4)
    broken = write_peft(folder / "broken", wider, config)
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    foreign = write_peft(folder / "foreign", random_parts(spec, rank=4), config)
    (foreign / "vitral.json").write_text(json.dumps({"base": "other.gguf", "base_digest": "0" * 64}))
    other = f"blocks.{spec.n_layers}.attn.k.weight, which this model does not have; it was made for another base"
    return {
        write_peft(folder / "deeper", deeper, config): other,
        write_adapter_gguf(folder / "deeper.gguf", deeper, deep, 8.0): other,
        write_peft(folder / "wider", wider, config): r"the model's is \d+ x \d+; the adapter was made for another base",
        write_peft(folder / "nothing", {}, config): "holds no tensors",
        foreign: "trained on another base: other.gguf, weights 000000000000; this model is",
        broken: "adapter_model.safetensors",
        folder / "missing": "no adapter at",
    }


def test_adapters_come_and_go_while_requests_run(tmp_path: Path, tiny_path: str) -> None:
    from tests.formats.test_adapters import random_parts, write_adapter_gguf, write_peft
    from vitral.formats.checkpoint import open_checkpoint

    spec = open_checkpoint(Path(tiny_path)).spec
    parts = random_parts(spec, rank=4, scale=2.0)
    peft = write_peft(tmp_path / "lora", parts, {"r": 4, "lora_alpha": 8})
    gguf = write_adapter_gguf(tmp_path / "lora.gguf", parts, spec, 8.0)
    with live(tmp_path, tiny_path) as server:
        adapters = f"/v1/models/{TINY}/adapters"
        long = {**SHORT, "max_tokens": 200, "temperature": 0}
        plain = server.post("/v1/completions", long).json()["choices"][0]["text"]
        loads = [
            server.post(adapters, {"name": name, "path": str(path)}).json()
            for name, path in (("peft", peft), ("gguf", gguf))
        ]
        assert loads[0]["digest"] == loads[1]["digest"]
        assert (loads[0]["base"]["evidence"], loads[0]["base"]["weak"]) == ("none", True)
        assert set(server.http.get("/v1/engine").json()["engines"][0]["adapter_bases"]) == {"peft", "gguf"}
        assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == [TINY, f"{TINY}:peft", f"{TINY}:gguf"]
        painted = server.post("/v1/completions", {**long, "model": f"{TINY}:peft"}).json()["choices"][0]["text"]
        assert painted != plain

        events = server.events("/v1/completions", {**long, "model": f"{TINY}:peft"})
        text = next(events)["choices"][0]["text"]
        assert server.http.delete(f"{adapters}/peft").json()["deleted"]
        assert server.post("/v1/completions", {**long, "model": f"{TINY}:peft"}).status_code == 404
        text += "".join(event["choices"][0]["text"] for event in events)
        assert text == painted  # the request in flight kept its adapter

        def again() -> bool:  # the name is free once the last request with it has ended
            return server.post(adapters, {"name": "peft", "path": str(peft)}).status_code == 200

        wait_until(again)
        for path, says in refusals(tmp_path, spec).items():
            refused = server.post(adapters, {"name": "x", "path": str(path)}).json()["error"]
            assert (refused["code"], refused["param"]) == ("invalid_adapter", "path")
            assert re.search(says, refused["message"]), refused["message"]
        assert server.http.delete(f"{adapters}/x").status_code == 404

        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.http.get("/health").status_code == 200)
        after = server.post("/v1/completions", {**long, "model": f"{TINY}:gguf"}).json()["choices"][0]["text"]
        assert after == painted  # a worker that comes back has the adapters of the one before


def test_a_key_changes_what_is_served_only_if_it_is_an_admins(tmp_path: Path, tiny_path: str) -> None:
    from vitral.serve.access import KeyRing

    ring = KeyRing(tmp_path / "keys.json")
    keys = {"root": ring.add("root", admin=True), "anna": ring.add("anna")}
    assert ring.add("root", admin=True) != keys["root"]
    keys["root"] = ring.add("root", admin=True)
    with live(tmp_path, tiny_path) as server:
        path, body = f"/v1/models/{TINY}/adapters", {"name": "x", "path": "/nowhere"}
        statuses = {
            name: server.post(path, body, authorization=f"Bearer {key}").status_code for name, key in keys.items()
        }
    assert statuses == {"root": 400, "anna": 403}
