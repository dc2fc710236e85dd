"""What a file is, by its first bytes and its size; never by its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from vitral.errors import FormatError
from vitral.formats.llama2c import looks_like_llama2c

__all__ = ["Kind", "explain", "kind_of"]

Kind = Literal[
    "gguf", "safetensors", "torch", "llama2c", "json", "lfs pointer", "web page", "pickle", "text", "empty", "unknown"
]

_HEAD_BYTES = 512
_LARGEST_HEADER = 1 << 40


def kind_of(path: Path) -> Kind:
    """The kind of a regular file; FormatError where it cannot be read."""
    head, size = _head(path)
    if not size:
        return "empty"
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LARGEST_HEADER:
        return "safetensors"
    if looks_like_llama2c(head, size):
        return "llama2c"
    if head.startswith(b"\x80") and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    text = _as_text(head)
    if text is None:
        return "unknown"
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("{"):
        return "json"
    if start.startswith("version https://git-lfs"):
        return "lfs pointer"
    if start.startswith(("<!doctype html", "<html", "<?xml", "<head")):
        return "web page"
    return "text"


def explain(path: Path, kind: Kind) -> str:
    """Why a file of this kind is no model, and what to do."""
    size = path.stat().st_size
    said: dict[Kind, str] = {
        "empty": "is empty; download it again",
        "lfs pointer": "is a git-lfs pointer, not the model: run `git lfs pull` in its folder",
        "web page": "is a web page, not a model; the download met a login or an error page",
        "pickle": "is a pickle of an old version of torch, which is not read; take a safetensors or GGUF version",
        "text": "is a text file, not a model",
        "json": "is a JSON file that describes no model of ours",
    }
    return f"{path} {said.get(kind, f'({size} bytes) is no model file that Vitral knows')}"


def _head(path: Path) -> tuple[bytes, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is not a regular file")
        return os.read(descriptor, _HEAD_BYTES), status.st_size
    finally:
        os.close(descriptor)


def _as_text(head: bytes) -> str | None:
    for cut in range(4):  # the last character may be cut
        try:
            text = head[: len(head) - cut].decode()
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text) else None
    return None
