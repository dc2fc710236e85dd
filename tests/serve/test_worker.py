"""What the worker answers when a file is not what it should be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vitral.errors import FormatError, HardwareError, TensorMismatch, VitralError
from vitral.serve import worker
from vitral.serve.native_worker import WorkerOptions
from vitral.serve.wire import error_from, frame, receive_frame


class BadModel:
    """A model whose adapter cannot be read, each time in another way."""

    engine = grammars = None

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def load_adapter(self, name: str, path: str) -> str:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("cannot reshape array"), FormatError),
        (IndexError("out of range"), FormatError),
        (PermissionError("no"), FormatError),
        (MemoryError(), HardwareError),
        (TensorMismatch("made for another base"), TensorMismatch),
        (AssertionError("a bug"), VitralError),
    ],
)
def test_an_adapter_that_cannot_be_read_is_always_answered_with_a_typed_error(
    error: BaseException, kind: type[VitralError]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made: Any = worker.Worker(BadModel(error), theirs)  # type: ignore[arg-type]
        made._load(5, "x", "/adapters/x")
        ((number, result, told),) = made._replies
    assert (number, result) == (5, None)
    found = error_from(told)
    assert type(found) is kind
    assert "/adapters/x" in str(found) or kind is TensorMismatch


@pytest.mark.parametrize("unforeseen", [False, True])
def test_a_model_that_cannot_be_read_is_told_to_the_server(tmp_path: Path, unforeseen: bool) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    run = "from vitral.serve import worker; import sys;"
    if unforeseen:
        run += "worker.load = lambda *a, **k: int('x');"  # a reader's mistake
    ours, theirs = socket.socketpair()
    with ours:
        command = [sys.executable, "-c", run + "sys.exit(worker.main(sys.argv[1:]))", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ, stderr=subprocess.PIPE)
        theirs.close()
        ours.sendall(frame(asdict(WorkerOptions(str(path)))))
        ours.settimeout(60)
        told = receive_frame(ours)
    assert told is not None
    assert process.wait(60) == 2
    error = error_from(told["failed"])
    assert isinstance(error, FormatError)
    assert str(path) in str(error)
