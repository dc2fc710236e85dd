"""The process that computes: `python -m vitral.serve.worker FD`, spawned by the server with one end of a socket pair.

The first message says which model to load. Then requests come in on one thread, steps are computed on another, and
every step's tokens go out as one message; the digests of their logits, made while the server hands the tokens on, go
with the next one, or with the end of a request. The end of the connection ends the process: an orphan never lingers.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vitral.engine.digest import logits_digest
from vitral.engine.request import Finished, NewToken, PromptScored
from vitral.errors import FormatError, HardwareError, Overloaded, RequestError, VitralError
from vitral.language_model import LanguageModel
from vitral.loading import load
from vitral.model.law import F32
from vitral.serve.build import kernels_digest
from vitral.serve.constraints import constraint_from
from vitral.serve.engines import ABILITIES, Ask, Digest, Drawn, Ended, EngineEvent, Hidden, Scored, Seen, Token
from vitral.serve.observed import MOST_BYTES_TOGETHER, Observed
from vitral.serve.pictured import Pictured
from vitral.serve.wire import ask_from, error_to, event_to, frame, receive_frame

__all__ = ["Worker", "files_fault", "identity_of", "main"]


_MESSAGE_BYTES = 8 << 20  # of readings in one message, unless a single one is larger


class Worker:
    """An engine at the end of a connection."""

    def __init__(self, model: LanguageModel, connection: socket.socket) -> None:
        self._engine = model.engine
        self._grammars = model.grammars
        self._model = model
        self._connection = connection
        self._work = threading.Event()
        self._closed = False
        self._lock = threading.Lock()  # guards the fields below
        self._number: dict[int, int] = {}  # the engine's id -> the server's number
        self._engine_id: dict[int, int] = {}
        self._rows: list[
            tuple[int, F32]
        ] = []  # logits that this step's tokens were chosen from; the steps' thread's alone
        self._pooled: dict[int, Pooled] = {}
        self._observed: dict[int, Observed] = {}
        self._pictured: dict[int, Pictured] = {}
        self._late: list[tuple[int, EngineEvent]] = []  # what did not come out of a step
        self._replies: list[list[Any]] = []  # to loads and unloads of adapters
        self._retiring: list[str] = []  # adapters to go when the last request with them has ended

    def run(self) -> None:
        """Compute until the connection ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        digests: list[tuple[int, EngineEvent]] = []
        while not self._closed:
            self._work.clear()
            if self._engine.idle and not self._late and not self._replies:
                self._work.wait()
            stepped = self._engine.step()
            with self._lock:
                news = [self._told(event) for event in stepped if not isinstance(event, Finished)]
            if news:  # at once: while the server hands them on, its processor is not needed here
                self._send(digests + news, [])
                digests = []
            rows, self._rows = self._rows, []
            digests += [(number, Digest(logits_digest(row))) for number, row in rows]
            with self._lock:
                ends = [one for event in stepped if isinstance(event, Finished) for one in self._ended(event)]
                late, self._late = self._late, []
                replies, self._replies = self._replies, []
                self._retiring = [name for name in self._retiring if not self._gone(name)]
            if ends or late or replies:
                self._send([*digests, *ends, *late], replies)
                digests = []

    def _send(self, events: list[tuple[int, EngineEvent]], replies: list[list[Any]]) -> None:
        """One message, or several if there are readings that would make one too large."""
        out: list[list[Any]] = []
        n_bytes = 0
        for number, event in events:
            n_bytes += event.values.nbytes if isinstance(event, Seen) else 0
            if n_bytes > _MESSAGE_BYTES and out:
                self._connection.sendall(frame({"events": out, "replies": []}))
                out, n_bytes = [], event.values.nbytes if isinstance(event, Seen) else 0
            out.append([number, *event_to(event)])
        self._connection.sendall(frame({"events": out, "replies": replies}))

    def _listen(self) -> None:
        try:
            while message := receive_frame(self._connection):
                if "ask" in message:
                    self._ask(int(message["number"]), message["ask"])
                elif "cancel" in message:
                    self._cancel(int(message["cancel"]))
                elif "load" in message:  # a thread of its own: requests and steps go on
                    threading.Thread(target=self._load, args=message["load"], daemon=True).start()
                elif "unload" in message:
                    self._unload(*message["unload"])
                self._work.set()
        except OSError:
            pass  # the server has gone; so do we
        finally:
            self._closed = True
            self._work.set()

    def _ask(self, number: int, data: dict[str, Any]) -> None:
        try:
            ask = ask_from(data)
            constraint = None
            if ask.constraint is not None:  # compiled here, on the listening thread: the steps go on
                constraint = self._grammars.start(
                    constraint_from(ask.constraint), stop_ids=ask.params.stop_ids, salt=ask.salt
                )
            observed = Observed(self._model, ask) if ask.watch or ask.light is not None else None
            pictured = None if ask.picture is None else Pictured(self._model, ask)
            with self._lock:  # the step thread waits here until the number is known
                on_hidden = None
                if ask.pooling is not None:
                    self._pooled[number] = Pooled(ask)
                    on_hidden = self._pooled[number].take
                if observed is not None:
                    taken = sum(other.n_bytes for other in self._observed.values())
                    if taken + observed.n_bytes > MOST_BYTES_TOGETHER:
                        raise Overloaded("other requests are being looked at; ask again soon, or for fewer readings")
                    self._observed[number] = observed
                if pictured is not None:
                    if self._pictured:
                        raise Overloaded("another document is being made; ask again soon")
                    self._pictured[number] = pictured
                    self._read(number, pictured)
                    return
                request = self._engine.add(
                    ask.prompt,
                    ask.params,
                    client=ask.client,
                    salt=ask.salt,
                    on_choice=self._digester(number) if ask.digests else None,
                    on_hidden=on_hidden,
                    constraint=constraint,
                    adapter=None if ask.adapter is None else self._model.adapter(ask.adapter),
                    watch=[] if observed is None else observed.watches,
                    on_value=None if observed is None else observed.on_value,
                    interventions=ask.interventions,
                )
                self._number[request], self._engine_id[number] = number, request
        except VitralError as error:
            self._refuse(number, error)
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(number, RequestError(f"the request cannot be read: {type(error).__name__}: {error}"))

    def _refuse(self, number: int, error: VitralError) -> None:
        with self._lock:
            self._pooled.pop(number, None)
            self._observed.pop(number, None)
            self._pictured.pop(number, None)
            self._late.append((number, Ended("error", error=error)))

    def _cancel(self, number: int) -> None:
        with self._lock:
            request = self._engine_id.get(number)
        if request is not None:
            self._engine.cancel(request)

    def _load(self, number: int, name: str, path: str) -> None:
        try:
            with files_fault(f"the adapter {path}"):
                digest = self._model.load_adapter(name, path)
            reply = [number, [digest, self._model.adapter(name).n_bytes, _base_of(self._model, name)], None]
        except VitralError as error:
            reply = [number, None, error_to(error)]
        self._reply(reply)

    def _unload(self, number: int, name: str) -> None:
        with self._lock:
            if name in self._model.adapters and name not in self._retiring:
                self._retiring.append(name)
        self._reply([number, None, None])

    def _reply(self, reply: list[Any]) -> None:
        with self._lock:
            self._replies.append(reply)
        self._work.set()

    def _gone(self, name: str) -> bool:
        """Whether an adapter could be unloaded; requests that have it keep it to their end."""
        try:
            self._model.unload_adapter(name)
        except RequestError:
            return False
        return True

    def _read(self, number: int, pictured: Pictured) -> bool:
        """Begin the next reading of a document, if there is one. The lock is held."""
        begun = pictured.next()
        if begun is None:
            return False
        reader, interventions = begun
        ask = pictured.ask
        request = self._engine.add(
            ask.prompt,
            ask.params,
            client=ask.client,
            salt=ask.salt,
            on_logits=reader.on_logits,
            adapter=None if ask.adapter is None else self._model.adapter(ask.adapter),
            watch=reader.watches,
            on_value=reader.on_value,
            interventions=interventions,
        )
        self._number[request], self._engine_id[number] = number, request
        return True

    def _draw(self, number: int, pictured: Pictured, ended: Ended) -> None:
        """A document takes long: made on a thread of its own, while steps go on."""
        events: list[tuple[int, EngineEvent]]
        try:
            events = [(number, Drawn(pictured.document())), (number, ended)]
        except VitralError as error:
            events = [(number, Ended("error", error=error))]
        except Exception:  # noqa: BLE001 - a fault of ours ends this request alone, and the log has it whole
            traceback.print_exc()
            events = [(number, Ended("error", error=VitralError("the document could not be made; the log says how")))]
        with self._lock:
            self._pictured.pop(number, None)
            self._late += events
        self._work.set()

    def _digester(self, number: int) -> Callable[[int, F32], None]:
        def keep(position: int, row: F32) -> None:
            self._rows.append((number, row))

        return keep

    def _told(self, event: NewToken | PromptScored) -> tuple[int, EngineEvent]:
        """What an event of the engine says to the server. The lock is held."""
        number = self._number[event.request_id]
        if isinstance(event, PromptScored):
            return number, Scored(event.scores)
        if (observed := self._observed.get(number)) is not None:
            observed.take(event.token)
        return number, Token(event.token, event.score)

    def _ended(self, event: Finished) -> list[tuple[int, EngineEvent]]:
        """The end of a request, and what comes with it. The lock is held."""
        number = self._number.pop(event.request_id)
        del self._engine_id[number]
        observed = self._observed.pop(number, None)
        pooled = self._pooled.pop(number, None)
        pictured = self._pictured.get(number)
        if pictured is not None and event.reason == "length":
            if not self._read(number, pictured):
                drawn = (number, pictured, Ended(event.reason, event.cached))
                threading.Thread(target=self._draw, args=drawn, daemon=True).start()
            return []
        self._pictured.pop(number, None)
        last: list[EngineEvent] = []
        if pooled is not None and event.reason == "length":
            last.append(pooled.result())
        if observed is not None and event.reason != "error":
            last += observed.result()
        return [(number, each) for each in (*last, Ended(event.reason, event.cached, error=event.error))]


class Pooled:
    """One vector from the hidden states of all positions: their mean in float64, or the last."""

    def __init__(self, ask: Ask) -> None:
        self._mean = ask.pooling == "mean"
        self._sum: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self._n = 0

    def take(self, position: int, row: F32) -> None:
        if self._mean and self._sum is not None:
            self._sum += row
        else:
            self._sum = row.astype(np.float64)
        self._n += 1

    def result(self) -> Hidden:
        assert self._sum is not None, "a prompt has at least one token"
        return Hidden(tuple((self._sum / (self._n if self._mean else 1)).tolist()))


@contextmanager
def files_fault(what: str) -> Iterator[None]:
    """Errors of reading a file as typed ones: a value that no reader foresaw is the file's fault, not the request's.

    Raises FormatError, HardwareError where memory ran out, and VitralError for a failure of ours, after its traceback.

    >>> with files_fault("the adapter /a"):
    ...     int("x")
    Traceback (most recent call last):
    vitral.errors.FormatError: the adapter /a cannot be read: ValueError: invalid literal for int() with base 10: 'x'
    """
    try:
        yield
    except VitralError:
        raise
    except MemoryError:
        raise HardwareError(f"{what} does not fit into memory; choose a smaller one, or give it more") from None
    except (OSError, ValueError, LookupError, OverflowError, RecursionError) as error:
        traceback.print_exc()
        raise FormatError(f"{what} cannot be read: {type(error).__name__}: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise VitralError(f"{what} could not be loaded: {type(error).__name__}; the log says how") from error


def identity_of(model: LanguageModel, name: str, kv_type: str) -> dict[str, Any]:
    """The digests and kernels that decide a loaded model's bits, as records hold them."""
    from vitral.engine.native import NativeForward
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.hub import resolve

    forward = model.engine.forward
    assert isinstance(forward, NativeForward)
    return {
        "weights": open_checkpoint(resolve(name)).weights.digest(),
        "tokenizer": model.tokenizer.digest,
        "template": model.tokenizer.template_digest,
        "kernels": {"isa": forward.model.isa, "kv_type": kv_type, "build": kernels_digest()},
    }


def facts_of(model: LanguageModel, options: dict[str, Any]) -> dict[str, Any]:
    """What the server shall know of a loaded model, its adapters included, as plain data."""
    from vitral import native
    from vitral.engine.native import NativeForward

    forward = model.engine.forward
    assert isinstance(forward, NativeForward)
    identity = identity_of(model, options["model"], options["kv_type"])
    adapters = {name: model.adapter(name) for name in model.adapters}
    return {
        "context_length": model.context_length,
        "vocab_size": forward.vocab_size,
        "cache_tokens": forward.n_pages * forward.page_size,
        "can": sorted(ABILITIES),
        "digests": {"weights": identity["weights"]},
        "kernels": {
            **identity["kernels"],
            "available": [
                {"name": s.name, "available": s.available, "why": s.reason} for s in native.instruction_sets()
            ],
        },
        "memory": {"weights": forward.model.weight_bytes, "cache": int(forward.cache.nbytes)}
        | {f"adapter:{name}": adapter.n_bytes for name, adapter in adapters.items()},
        "adapters": {name: adapter.digest for name, adapter in adapters.items()},
        "bases": {name: _base_of(model, name) for name in adapters},
    }


def _base_of(model: LanguageModel, adapter: str) -> dict[str, Any] | None:
    base = model.adapter(adapter).base
    return None if base is None else base.as_dict()


def main(arguments: list[str]) -> int:
    """Load the model that the first message names and compute for it. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, which then tells us
    connection = socket.socket(fileno=int(arguments[0]))
    options = receive_frame(connection)
    if options is None:
        return 0
    try:
        with files_fault(f"the model {options['model']}"):
            model = load(
                options["model"],
                threads=options["threads"],
                context_length=options["context_length"],
                kv_type=options["kv_type"],
                isa=options["isa"],
                memory_bytes=options["memory_bytes"],
            )
        for name, path in options["adapters"]:
            with files_fault(f"the adapter {path}"):
                model.load_adapter(name, path)
        facts = facts_of(model, options)
    except VitralError as error:
        connection.sendall(frame({"failed": error_to(error)}))
        return 2
    connection.sendall(frame({"ready": facts}))
    try:
        Worker(model, connection).run()
    except BrokenPipeError:
        return 0  # the server has gone
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
