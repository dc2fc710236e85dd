"""What tuning writes is whole, or what was there before; a full disk is a TuneError that says what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vitral.errors import TuneError

__all__ = ["append_whole", "staged", "write_whole", "writing"]


@contextmanager
def writing(path: Path, then: str) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into a TuneError; `then` says what to do."""
    try:
        yield
    except OSError as error:
        place = next((p for p in (path, *path.parents) if p.exists()), Path.cwd())
        free = shutil.disk_usage(place).free
        raise TuneError(
            f"{path} cannot be written ({error.strerror or error}; {free} bytes are free there); {then}"
        ) from None


def write_whole(path: Path, content: str | Callable[[BinaryIO], object], then: str) -> None:
    """Write a text, or what `content` writes, under another name and then in place: there is always one that is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path, then):
            with partial.open("wb") as file:
                _ = file.write(content.encode()) if isinstance(content, str) else content(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def append_whole(path: Path, data: bytes, then: str) -> None:
    """Add to the end of a file all of `data`, or nothing."""
    with writing(path, then), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:  # a full disk may take a part
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


@contextmanager
def staged(path: Path, then: str) -> Iterator[Path]:
    """A place beside `path`, of the same name, for a file or folder that is moved there once it is whole."""
    stage = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path, then):
            stage.mkdir(parents=True)
            yield stage / path.name
            (stage / path.name).replace(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
