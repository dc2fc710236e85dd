"""A real server in a process of its own, for tests: `vitral serve` as a user starts it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.over_http import Server, started

__all__ = ["Live", "live", "metric", "wait_until", "with_template"]


class Live:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path, models: list[str]) -> None:
        self.process, self.url, self.folder, self.models = process, url, folder, models
        self.records_url = f"sqlite:///{folder / 'records.sqlite'}"
        self.http = httpx.Client(base_url=url, timeout=120)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(path, content=content, headers={"content-type": "application/json", **headers})

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON of each event of a stream, without [DONE]."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])

    def workers(self) -> list[int]:
        """Process ids of the engines."""
        return Server.at(self.url, self.process.pid).workers()

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)


@contextlib.contextmanager
def live(folder: Path, *arguments: str, module: str = "vitral", **environment: str) -> Iterator[Live]:
    """Start it, wait until it is ready, stop it. module: what has the command `serve`."""
    log = (folder / "log.txt").open("a+")
    given = (*arguments, "--folder", str(folder), "--threads", "1")
    process, told = started(*given, module=module, stderr=log, **{"OMP_NUM_THREADS": "1", **environment})
    if "url" not in told:
        log.seek(0)
        raise AssertionError(f"the server did not start: {log.read()[-2000:]}")
    server = Live(process, told["url"], folder, told["models"])
    try:
        yield server
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            log.close()


def metric(server: Live, name: str) -> float:
    """A number of /metrics, by its name and labels."""
    return next(
        float(line.split()[-1]) for line in server.http.get("/metrics").text.splitlines() if line.startswith(name + " ")
    )


def wait_until(claim: Any, seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.05)


def with_template(model: Path, target: Path, template: str) -> Path:
    """The same model as a GGUF file of float32 with this chat template."""
    from vitral.conversion import convert
    from vitral.formats.gguf import GgufFile
    from vitral.formats.gguf_write import TensorToWrite, write_gguf

    plain = target.with_suffix(".plain.gguf")
    convert(model, plain, type="F32")
    file = GgufFile.open(plain)
    tensors = [TensorToWrite(name, tensor.shape, tensor.type, tensor.raw) for name, tensor in file.tensors.items()]
    write_gguf(target, {**file.exact_metadata(), "tokenizer.chat_template": template}, tensors)
    return target
