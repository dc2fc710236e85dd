"""What the worker sends, and what it answers when a file is not what it should be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llguidance
import pytest

from tests.engine.doubles import HashForward
from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.digest import logits_digest
from vitral.engine.engine import Engine
from vitral.engine.grammar import Constraint, Grammars
from vitral.engine.request import SamplingParams
from vitral.errors import FormatError, HardwareError, TensorMismatch, VitralError
from vitral.serve import worker
from vitral.serve.constraints import constraint_to
from vitral.serve.engines import Ask, Digest, Ended, EngineEvent, Token
from vitral.serve.native_worker import WorkerOptions
from vitral.serve.wire import ask_to, error_from, event_from, frame, receive_frame


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


def small_engine() -> tuple[Engine, ByteVocabulary]:
    tokens = ByteVocabulary([b"yes", b"no"], [])
    return Engine(HashForward(vocab_size=tokens.vocab_size), context_length=200), tokens


@contextmanager
def working() -> Iterator[socket.socket]:
    """The server's end of a worker's connection."""
    engine, tokens = small_engine()
    model: Any = SimpleNamespace(engine=engine, grammars=Grammars(tokens, tokens.vocab_size))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=worker.Worker(model, theirs).run)
        thread.start()
        ours.settimeout(30)
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join(30)
    assert not thread.is_alive()


def told(connection: socket.socket, asks: list[Ask]) -> dict[int, list[EngineEvent]]:
    """Everything that a worker sends for these, by their place."""
    heard: dict[int, list[EngineEvent]] = {number: [] for number in range(len(asks))}
    for number, ask in enumerate(asks):
        connection.sendall(frame({"number": number, "ask": ask_to(ask)}))
    while not all(events and isinstance(events[-1], Ended) for events in heard.values()):
        message = receive_frame(connection)
        assert message is not None
        for number, *data in message["events"]:
            heard[number].append(event_from(data))
    return heard


def test_each_token_s_digest_follows_it_and_comes_before_the_end() -> None:
    params = SamplingParams(max_tokens=5, seed=0)
    asks = [
        Ask((1, 2), params, digests=True),
        Ask((3,), replace(params, max_tokens=2)),
        Ask((4,), params, digests=True),
    ]
    engine, _ = small_engine()
    with working() as connection:
        heard = told(connection, asks)
    for ask, events in zip(asks, heard.values(), strict=True):
        rows: list[str] = []
        answer = engine.answer(ask.prompt, ask.params, on_choice=lambda _, row: rows.append(logits_digest(row)))  # noqa: B023
        tokens = [event.token for event in answer if not hasattr(event, "reason")]
        assert [event.token for event in events if isinstance(event, Token)] == tokens
        assert [event.digest for event in events if isinstance(event, Digest)] == (rows if ask.digests else [])
        n_tokens = n_digests = 0
        for event in events:
            n_tokens += isinstance(event, Token)
            n_digests += isinstance(event, Digest)
            assert n_digests <= n_tokens
        assert events[-1] == Ended("length")


def test_a_constraint_of_another_tenant_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time to the first token would say whether somebody else asked for this form."""
    real, compiled = llguidance.LLMatcher, []

    class Counted:
        validate_grammar_with_warnings = real.validate_grammar_with_warnings

        def __new__(cls, *given: Any, **named: Any) -> Any:
            compiled.append(given)
            return real(*given, **named)

    wire = constraint_to(Constraint.choice(["yes", "no"]))
    ask = Ask((1,), SamplingParams(max_tokens=3, seed=0), salt=b"anna", constraint=wire)
    with working() as connection:
        monkeypatch.setattr(llguidance, "LLMatcher", Counted)
        told(connection, [ask])
        told(connection, [ask])
        assert len(compiled) == 1  # the same tenant finds it
        told(connection, [replace(ask, salt=b"bob")])
    assert len(compiled) == 2
