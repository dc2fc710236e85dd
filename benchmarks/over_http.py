"""A `vitral serve` of its own for a benchmark, and a client that costs little.

The client shares the processors with what it measures, so it writes and reads plain sockets: httpx takes more time for
a token than the server does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Reply", "Server", "connection", "get", "sent", "served"]


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

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@contextmanager
def served(model: str, folder: str, *extra: str) -> Iterator[Server]:
    """`vitral serve` on a free port, stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitral", "serve", model, "--port", "0", "--folder", folder, "--json", *extra],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    try:
        yield Server.at(json.loads(text)["url"], process.pid)
    finally:
        process.terminate()
        process.wait(60)


@asynccontextmanager
async def connection(
    server: Server, path: str, body: Any = None, method: str | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """A request that is sent: its answer as the bytes of its connection, which ends with it, or is cut on leaving."""
    content = b"" if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 22)
    try:
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        yield reader
    finally:
        writer.close()


async def sent(server: Server, path: str, body: Any = None, method: str | None = None) -> Reply:
    """The whole answer to a request that is not streamed."""
    async with connection(server, path, body, method) as reader:
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    return Reply(int(head.split(b" ", 2)[1]), head.decode("latin-1").lower(), content)


async def get(server: Server, path: str) -> Any:
    """The JSON of an address."""
    return (await sent(server, path)).json()
