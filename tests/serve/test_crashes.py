"""Processes that are killed, disks that are full, clocks that jump, readers that crawl: each bounded, each with its end."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import TINY
from tests.serve.live import Live, live, wait_until
from vitral.serve.batches import MOST_LOST

LONG = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 300, "temperature": 1.0}
SHORT = {**LONG, "max_tokens": 4, "seed": 1}


@pytest.fixture
def start(tmp_path: Path, tiny_path: str) -> Iterator[Callable[..., Live]]:
    with ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(live(tmp_path, tiny_path, *arguments, **more))


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


def test_killing_the_worker_under_load_gives_each_request_its_answer_or_a_typed_error(
    start: Callable[..., Live],
) -> None:
    server = start()
    bodies = [{**LONG, "seed": i} for i in range(12)]
    alone = [text_of(server.post("/v1/completions", body)) for body in bodies]

    def whole(i: int) -> str:
        answer = httpx.post(server.url + "/v1/completions", json=bodies[i], timeout=60)
        if answer.status_code == 200:
            return "right" if text_of(answer) == alone[i] else f"wrong {i}"
        return str(answer.json()["error"]["code"])

    def streamed(i: int) -> str:
        text, last = "", "nothing"
        with httpx.stream("POST", server.url + "/v1/completions", json={**bodies[i], "stream": True}, timeout=60) as s:
            for line in s.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return str(event["error"]["code"]) if alone[i].startswith(text) else f"wrong {i}"
                    text += event["choices"][0]["text"]
                last = line or last
        return "right" if (text, last) == (alone[i], "data: [DONE]") else f"wrong {i}: {last}"

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(whole if i % 2 else streamed, i) for i in range(12)]
        wait_until(lambda: "vitral_sequences_in_flight 12.0" in server.http.get("/metrics").text)
        os.kill(server.workers()[0], signal.SIGKILL)
        outcome = Counter(each.result(60) for each in asked)
    assert set(outcome) <= {"right", "engine_lost"}, outcome
    assert outcome["engine_lost"] >= 1, outcome
    wait_until(lambda: server.http.get("/health").status_code == 200, 30)
    assert [text_of(server.post("/v1/completions", body)) for body in bodies[:3]] == alone[:3]
    assert "vitral_sequences_in_flight 0.0" in server.http.get("/metrics").text


def start_batch(server: Live, n: int, most: int, poisoned: int | None = None) -> str:
    bodies = [{**LONG, "max_tokens": most} for _ in range(n)]
    if poisoned is not None:
        bodies[poisoned]["prompt"] = [7, 7, 7]
    lines = [
        {"custom_id": f"line {i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = server.http.post("/v1/files", files={"file": ("in.jsonl", io.BytesIO(data))}, data={"purpose": "batch"})
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    return str(server.post("/v1/batches", body).json()["id"])


def batch_texts(server: Live, id: str) -> list[str]:
    wait_until(lambda: server.http.get(f"/v1/batches/{id}").json()["status"] != "in_progress", 120)
    batch = server.http.get(f"/v1/batches/{id}").json()
    assert (batch["status"], batch["error_file_id"]) == ("completed", None), batch
    lines = server.http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [each["custom_id"] for each in answers] == [f"line {i}" for i in range(len(answers))]
    return [each["response"]["body"]["choices"][0]["text"] for each in answers]


def test_a_batch_goes_on_after_the_server_was_killed_twice(tmp_path: Path, tiny_path: str) -> None:
    n, most = 40, 60
    ended = signal.SIGKILL
    with live(tmp_path, tiny_path) as server:
        id = start_batch(server, n, most)
        partial = tmp_path / "files" / f"{id}.lines"
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
        server.stop(ended)
    done = partial.read_bytes().count(b"\n")
    assert 0 < done < n
    with partial.open("ab") as out:  # as a crash in the middle of a line leaves it
        out.write(b'{"custom_id": "line 5')
    with live(tmp_path, tiny_path) as server:
        wait_until(lambda: partial.read_bytes().count(b"\n") > done)
        server.stop(ended)
    lines = partial.read_bytes().splitlines()
    assert done < len(lines) < n
    assert all(json.loads(line)["custom_id"] for line in lines)
    with live(tmp_path, tiny_path) as server:
        texts = batch_texts(server, id)
        assert len(texts) == n
        assert not partial.exists()
        assert batch_texts(server, start_batch(server, n, most)) == texts  # as if nothing had happened


def test_a_line_that_ends_the_engine_gets_an_error_and_the_others_their_answers(
    start: Callable[..., Live], tmp_path: Path
) -> None:
    path = [str(Path(__file__).with_name("fragile")), os.environ.get("PYTHONPATH", "")]
    server = start(PYTHONPATH=os.pathsep.join(filter(None, path)))
    id = start_batch(server, 18, 20, poisoned=5)
    wait_until(lambda: server.http.get(f"/v1/batches/{id}").json()["request_counts"]["completed"] > 0)
    wait_until(lambda: server.http.get(f"/v1/batches/{id}").json()["status"] != "in_progress", 120)
    batch = server.http.get(f"/v1/batches/{id}").json()
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 18, "completed": 17, "failed": 1}
    good, bad = (
        [json.loads(line) for line in server.http.get(f"/v1/files/{batch[name]}/content").text.splitlines()]
        for name in ("output_file_id", "error_file_id")
    )
    assert [line["custom_id"] for line in good] == [f"line {i}" for i in range(18) if i != 5]
    assert [line["custom_id"] for line in bad] == ["line 5"]
    assert (bad[0]["response"]["status_code"], bad[0]["response"]["body"]["error"]["code"]) == (503, "engine_lost")
    assert f"ended {MOST_LOST} times" in bad[0]["response"]["body"]["error"]["message"]
    again = server.post("/v1/completions", SHORT)
    assert again.status_code == 200


def test_a_batch_whose_day_is_over_says_which_lines_were_not_answered(tmp_path: Path, tiny_path: str) -> None:
    clock = tmp_path / "clock"
    with live(tmp_path, tiny_path) as server:
        id = start_batch(server, 40, 60)
        wait_until(lambda: server.http.get(f"/v1/batches/{id}").json()["request_counts"]["completed"] > 0)
        server.stop(signal.SIGKILL)
    clock.write_text("90000")
    with live(tmp_path, tiny_path, module="tests.serve.hurried", HURRIED_CLOCK=str(clock)) as server:
        wait_until(lambda: server.http.get(f"/v1/batches/{id}").json()["status"] == "expired")
        batch = server.http.get(f"/v1/batches/{id}").json()
        done, failed = (batch["request_counts"][name] for name in ("completed", "failed"))
        assert 0 < done < 40
        assert done + failed == 40
        lines = server.http.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
        assert {json.loads(line)["error"]["code"] for line in lines} == {"batch_expired"}


def limit_file_size(pid: int, n: int) -> None:
    """No file that the process writes may grow beyond n bytes: for it the disk is full."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (n, hard))


@dataclass(frozen=True, slots=True)
class Disk:
    """Where the server keeps what it keeps; full at will."""

    folder: Path
    fill: Callable[[Live], None]
    empty: Callable[[Live], None]


def limited(folder: Path) -> Disk:
    """A disk on which no file may grow any more."""
    return Disk(
        folder,
        lambda server: limit_file_size(server.process.pid, 1),
        lambda server: limit_file_size(server.process.pid, resource.RLIM_INFINITY),
    )


def mounted(folder: Path) -> Disk:
    """A disk of 16 MiB that a ballast fills to the last byte."""
    ballast = folder / "ballast"

    def fill(server: Live) -> None:
        with ballast.open("wb", buffering=0) as out, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            while out.write(bytes(1 << 12)):
                pass
        assert shutil.disk_usage(folder).free == 0

    return Disk(folder, fill, lambda server: ballast.unlink())


@pytest.fixture(params=["a limit on files", "a file system that is full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "a limit on files":
        yield limited(tmp_path)
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "vitral-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_and_empties_again_loses_nothing(disk: Disk, tiny_path: str) -> None:
    with live(disk.folder, tiny_path) as server:
        outlive(server, disk)


def outlive(server: Live, disk: Disk) -> None:
    kept = [server.post("/v1/completions", {**SHORT, "seed": i}).json() for i in range(3)]
    batch = start_batch(server, 20, 40)
    events = server.events("/v1/completions", {**LONG, "seed": 5})
    assert "choices" in next(events)
    disk.fill(server)
    *told, last = events
    assert last["error"]["code"] == "record_store_unavailable"  # without its record an answer has no end
    assert all(event["choices"][0]["finish_reason"] is None for event in told)
    began = time.monotonic()
    refused = server.post("/v1/completions", SHORT)
    assert time.monotonic() - began < 10
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "record_store_unavailable")
    assert "choices" not in refused.json()
    stream = server.post("/v1/completions", {**SHORT, "stream": True})
    assert stream.status_code == 503  # nothing was said before it
    upload = server.http.post("/v1/files", files={"file": ("x", b"y" * 100)}, data={"purpose": "batch"})
    assert (upload.status_code, upload.json()["error"]["code"]) == (503, "record_store_unavailable")
    assert server.http.get("/health").status_code == 200
    assert server.http.get(f"/v1/records/{kept[0]['record']}").status_code == 200
    assert server.http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"  # it waits
    disk.empty(server)
    wait_until(lambda: server.post("/v1/completions", SHORT).status_code == 200)
    for answer in kept:
        assert server.post(f"/v1/records/{answer['record']}/replay", {}).json()["verdict"] == "EXACT"
    assert len(batch_texts(server, batch)) == 20
    assert "vitral_sequences_in_flight 0.0" in server.http.get("/metrics").text


def test_a_clock_that_jumps_changes_no_answer_and_ends_none(start: Callable[..., Live], tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    server = start("--keep-days", "30", module="tests.serve.hurried", HURRIED_CLOCK=str(clock))
    alone = text_of(server.post("/v1/completions", {**LONG, "seed": 3}))
    records = []
    for jump in (86_400, -86_400, 3 * 86_400, 0):
        text = ""
        for n, event in enumerate(server.events("/v1/completions", {**LONG, "seed": 3})):
            if n == 3:
                clock.write_text(str(jump))
            records.append(event["record"])
            text += event["choices"][0]["text"]
        assert text == alone
        made = server.post("/v1/completions", SHORT).json()
        assert abs(made["created"] - (time.time() + jump)) < 60  # the clock did move
        refused = server.post("/v1/completions", {**SHORT, "max_tokens": 10**6})
        assert refused.status_code == 400
        assert server.http.get("/health").status_code == 200
    assert len(set(records)) == 4
    for record in set(records):
        replayed = server.post(f"/v1/records/{record}/replay", {})
        assert replayed.json().get("verdict") == "EXACT", replayed.text
    assert "vitral_sequences_in_flight 0.0" in server.http.get("/metrics").text


def test_a_reader_of_a_few_bytes_a_second_is_cut_off_and_slows_nobody(start: Callable[..., Live]) -> None:
    server = start(module="tests.serve.hurried")  # a reader may take nothing for 2 s instead of 30
    at = urlsplit(server.url)
    body = json.dumps({**LONG, "max_tokens": 450, "n": 4, "logprobs": 20, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect((at.hostname, at.port))
    slow.sendall(head.encode() + body)
    done = threading.Event()

    def crawl() -> None:
        while not done.wait(0.2):
            slow.recv(1)

    crawler = threading.Thread(target=crawl, daemon=True)
    crawler.start()
    began = time.monotonic()
    while "vitral_sequences_in_flight 0.0" in server.http.get("/metrics").text:
        assert time.monotonic() - began < 30, "the reader's request never began"
        time.sleep(0.01)
    waits = []  # the cache has room for all five at once: what waits, waits for the reader
    while "vitral_sequences_in_flight 0.0" not in server.http.get("/metrics").text:
        assert time.monotonic() - began < 60
        asked = time.monotonic()
        assert server.post("/v1/completions", SHORT).status_code == 200
        waits.append(time.monotonic() - asked)
        time.sleep(0.1)
    assert time.monotonic() - began < 40  # the engine was done long ago, and the place is given back
    assert max(waits) < 5, waits
    assert "was cut off" in (server.folder / "log.txt").read_text()
    done.set()
    crawler.join()
    slow.settimeout(10)
    rest = b""
    with pytest.raises(ConnectionResetError):  # the kernel keeps nothing for it either
        while piece := slow.recv(1 << 16):
            rest += piece
    assert b"[DONE]" not in rest
    slow.close()


def test_two_thousand_idle_connections_keep_nobody_out(start: Callable[..., Live]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"this user may have {hard} open files; 2500 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    server = start()
    at = urlsplit(server.url)
    before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    idle = [socket.create_connection((at.hostname, at.port), timeout=30) for _ in range(1900)]
    for _ in range(100):  # and some that begin to speak
        idle.append(socket.create_connection((at.hostname, at.port), timeout=30))
        idle[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    waits = []
    for _ in range(10):
        began = time.monotonic()
        assert server.post("/v1/completions", SHORT).status_code == 200
        waits.append(time.monotonic() - began)
    assert max(waits) < 5, waits
    wait_until(lambda: "vitral_connections 1.0" in server.http.get("/metrics").text, 60)  # they are cut off
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) <= before + 4
    for connection in idle:
        connection.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
