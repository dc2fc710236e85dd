"""A loopback mirror of the Hugging Face Hub with one repository, which can cut a download or lie about a digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Mirror:
    files: dict[str, bytes]
    lie: bool = False  # promise a digest that the bytes do not have
    cut: int = 0  # so many downloads break off half-way
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    def promised(self, name: str) -> str:
        return "0" * 64 if self.lie else hashlib.sha256(self.files[name]).hexdigest()


@contextmanager
def serve(mirror: Mirror) -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith(("/api/models/", "/api/datasets/")):
                siblings = [
                    {"rfilename": n, "size": len(b), "blobId": "x", "lfs": {"sha256": mirror.promised(n), "size": len(b), "pointerSize": 1}}
                    for n, b in mirror.files.items()
                ]  # fmt: skip
                self._send(200, json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": siblings}).encode(), body)
                return
            name = path.rsplit("/", 1)[-1]
            if "/resolve/" not in path or name not in mirror.files:
                self._send(404, b"", body)
                return
            content, status, start = mirror.files[name], 200, 0
            if found := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                status, start = 206, int(found[1])
                if start:
                    mirror.ranges.append(found[0])
            self._send(status, content[start:], body, name, start)

        def _send(self, status: int, content: bytes, body: bool, name: str = "", start: int = 0) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            if name:
                self.send_header("ETag", f'"{mirror.promised(name)}"')
                self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                whole = len(mirror.files[name])
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.end_headers()
            if not body:
                return
            if name and mirror.cut:
                mirror.cut -= 1
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
