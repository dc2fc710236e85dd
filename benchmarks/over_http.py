"""A `vitral serve` of its own for a benchmark or a test, and a client that costs little.

The client shares the processors with what it measures, so it writes and reads plain sockets: httpx takes more time for
a token than the server does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from benchmarks import record

__all__ = ["Reply", "Server", "connection", "counted", "get", "run", "sent", "served", "started", "streams"]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens, and its process."""

    host: str
    port: int
    pid: int

    @classmethod
    def at(cls, url: str, pid: int) -> Server:
        """From an address such as http://127.0.0.1:8000."""
        parts = urlsplit(url)
        return cls(str(parts.hostname), int(parts.port or 80), pid)

    def workers(self) -> list[int]:
        """Process ids of its engines."""
        tasks = Path(f"/proc/{self.pid}/task")
        children = [int(n) for task in tasks.iterdir() for n in (task / "children").read_text().split()]
        return [n for n in children if b"vitral.serve.worker" in Path(f"/proc/{n}/cmdline").read_bytes()]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is read to its end."""

    status: int
    head: str
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Reply:
        """From all bytes of its connection."""
        head, _, body = data.partition(b"\r\n\r\n")
        return cls(int(head.split(b" ", 2)[1]), head.decode("latin-1").lower(), body)

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def events(self) -> list[dict[str, Any]]:
        """The JSON of each event of a stream. AssertionError if the stream broke off."""
        assert self.status == 200, self
        lines = [line[6:] for line in _whole(self.body).splitlines() if line.startswith(b"data: ")]
        assert lines and lines[-1] == b"[DONE]", self
        return [json.loads(line) for line in lines[:-1]]


def started(
    *arguments: str, module: str = "vitral", stderr: IO[str] | None = None, **environment: str
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """`vitral serve` with these arguments on a free port, and what it says of itself once it is ready.

    module: what has the command `serve`. What it says is empty if it did not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    return process, json.loads(text or "{}")


@contextmanager
def served(model: str, folder: str, *extra: str) -> Iterator[Server]:
    """A server of a model, stopped at the end."""
    process, told = started(model, "--folder", folder, *extra)
    try:
        yield Server.at(told["url"], process.pid)
    finally:
        process.terminate()
        process.wait(60)


def run(
    name: str,
    about: str,
    measure: Callable[[Server, argparse.Namespace, Path], Coroutine[Any, Any, dict[str, Any]]],
    packages: Sequence[str],
    options: Mapping[str, float],
    *extra: str,
) -> dict[str, Any]:
    """A benchmark of one server from its command line to its file: `measure` gets the server, what was asked for, and
    a folder. options: numbers by name, with what they are if nothing is said. extra: arguments of the server."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2:135m")
    for option, usual in options.items():
        parser.add_argument(f"--{option}", type=type(usual), default=usual)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help=f"folder for {name}.json")
    given = parser.parse_args()

    async def measured(server: Server) -> dict[str, Any]:
        kernels = (await get(server, "/v1/engine"))["engines"][0]["kernels"]
        versions = record.versions("vitral", *packages)
        facts = {"versions": versions, "engine": {key: kernels.get(key) for key in ("isa", "kv_type")}}
        return {"model": given.model, **facts, **await measure(server, given, Path(folder))}

    with tempfile.TemporaryDirectory() as folder, served(given.model, folder, *extra) as server:
        found = asyncio.run(measured(server))
    print(json.dumps(found, indent=2, ensure_ascii=False))
    print(f"written to {record.write(name, found, given.out)}")
    return found


def streams(server: Server, path: str, bodies: Sequence[Any], pause_s: float = 0.01) -> tuple[float, list[Reply]]:
    """Seconds from the first request to the last byte of answers that run at once, and the answers.

    What has come is taken `pause_s` after the first of it, by plain reads, so about once for each step: a client that
    wakes for each token takes the processor from the engine that it measures, where a user's client has one of its own.
    Nothing is parsed while the clock runs.
    """
    began = time.perf_counter()
    data: dict[socket.socket, bytearray] = {}
    for body in bodies:
        one = socket.create_connection((server.host, server.port))
        one.sendall(_request(path, body))
        one.setblocking(False)
        data[one] = bytearray()
    with selectors.DefaultSelector() as selector:
        for one in data:
            selector.register(one, selectors.EVENT_READ, one)
        while selector.get_map():
            selector.select()
            time.sleep(pause_s)
            for key, _ in selector.select(0):
                piece = key.data.recv(1 << 16)
                data[key.data] += piece
                if not piece:
                    selector.unregister(key.data)
    seconds = time.perf_counter() - began
    for one in data:
        one.close()
    return seconds, [Reply.of(bytes(each)) for each in data.values()]


def _request(path: str, body: Any, method: str | None = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def _whole(body: bytes) -> bytes:
    """A body that came in chunks, as one. AssertionError without the chunk of no bytes at its end."""
    found, rest = b"", body
    while True:
        size, _, rest = rest.partition(b"\r\n")
        assert size, "the answer broke off"
        n = int(size, 16)
        if n == 0:
            return found
        found, rest = found + rest[:n], rest[n + 2 :]


@asynccontextmanager
async def connection(
    server: Server, path: str, body: Any = None, method: str | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """A request that is sent: its answer as the bytes of its connection, which ends with it, or is cut on leaving."""
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 22)
    try:
        writer.write(_request(path, body, method))
        yield reader
    finally:
        writer.close()


async def sent(server: Server, path: str, body: Any = None, method: str | None = None) -> Reply:
    """The whole answer to a request that is not streamed."""
    async with connection(server, path, body, method) as reader:
        return Reply.of(await reader.read())


async def get(server: Server, path: str) -> Any:
    """The JSON of an address."""
    return (await sent(server, path)).json()


async def counted(server: Server, name: str) -> float:
    """The sum of a counter of /metrics over its labels; `name` may go on with the first label."""
    lines = (await sent(server, "/metrics")).body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
