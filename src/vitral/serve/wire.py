"""What crosses between server and worker: a length of four bytes, big-endian, then one JSON object.

Plain data alone, never pickle: a message that is not of this form ends the connection. The worker sends one message
a step, whatever the number of requests in it, and another one if something ends.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from array import array
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from vitral import errors
from vitral.engine.interventions import from_document, to_document
from vitral.engine.observe import Watch
from vitral.engine.request import SamplingParams, TokenScore
from vitral.errors import EngineLost, VitralError
from vitral.serve.engines import Ask, Digest, Drawn, Ended, EngineEvent, Hidden, Picture, Said, Scored, Seen, Token

__all__ = [
    "ask_from",
    "ask_to",
    "error_from",
    "error_to",
    "event_from",
    "event_to",
    "frame",
    "read_frame",
    "receive_frame",
]

LARGEST = 64 << 20
_HEAD = 4


def frame(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LARGEST:
        raise VitralError(f"a message of {len(body)} bytes is too large for the worker; allowed: {LARGEST}")
    return len(body).to_bytes(_HEAD, "big") + body


def receive_frame(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, or None at the end of the connection. Blocks."""
    head = _exactly(connection, _HEAD)
    body = _exactly(connection, _size(head)) if head else None
    return _object(body) if body else None


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream."""
    try:
        size = _size(await reader.readexactly(_HEAD))
        return _object(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _size(head: bytes) -> int:
    size = int.from_bytes(head, "big")
    if not 2 <= size <= LARGEST:
        raise EngineLost(f"a worker's message claims {size} bytes; allowed: 2 to {LARGEST}")
    return size


def _object(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise EngineLost("a worker's message is no JSON object")
    return message


def _exactly(connection: socket.socket, n: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < n:
        piece = connection.recv(min(n - len(pieces), 1 << 20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


def ask_to(ask: Ask) -> dict[str, Any]:
    """An Ask as plain data."""
    params = {field.name: getattr(ask.params, field.name) for field in fields(SamplingParams)}
    params["logit_bias"] = list(ask.params.logit_bias.items())
    params["stop_ids"] = sorted(ask.params.stop_ids)
    return {
        "prompt": ask.prompt,
        "params": params,
        "client": ask.client,
        "salt": ask.salt.hex(),
        "digests": ask.digests,
        "pooling": ask.pooling,
        "constraint": ask.constraint,
        "adapter": ask.adapter,
        "watch": [asdict(watch) for watch in ask.watch],
        "light": ask.light,
        "interventions": to_document(ask.interventions),
        "picture": None if ask.picture is None else asdict(ask.picture),
    }


def ask_from(data: Mapping[str, Any]) -> Ask:
    """The Ask again. Raises RequestError for parameters that SamplingParams refuses."""
    params = dict(data["params"])
    params["logit_bias"] = {int(token): float(bias) for token, bias in params["logit_bias"]}
    params["stop_ids"] = frozenset(params["stop_ids"])
    return Ask(
        prompt=tuple(data["prompt"]),
        params=SamplingParams(**params),
        client=data["client"],
        salt=bytes.fromhex(data["salt"]),
        digests=data["digests"],
        pooling=data["pooling"],
        constraint=data["constraint"],
        adapter=data["adapter"],
        watch=tuple(_watch_from(watch) for watch in data["watch"]),
        light=data["light"],
        interventions=from_document(data["interventions"]),
        picture=None if data["picture"] is None else Picture(**data["picture"]),
    )


def event_to(event: EngineEvent) -> list[Any]:
    """An event as a short list, its kind first."""
    match event:
        case Token(token, score):
            return ["t", token, None if score is None else _score_to(score)]
        case Digest(digest):
            return ["g", digest]
        case Said(text):
            return ["w", text]
        case Scored(scores):
            return ["p", [_score_to(score) for score in scores]]
        case Hidden(vector):
            return ["h", base64.b64encode(array("f", vector).tobytes()).decode()]
        case Seen(name, axis, positions, values):
            return ["s", name, axis, _array_to(positions), _array_to(values)]
        case Drawn(content):
            return ["d", content]
        case Ended(reason, cached, error, made):
            return ["e", reason, cached, None if error is None else error_to(error), made]


def event_from(data: list[Any]) -> EngineEvent:
    """The event again."""
    match data:
        case ["t", token, score]:
            return Token(token, None if score is None else _score_from(score))
        case ["g", digest]:
            return Digest(digest)
        case ["w", text]:
            return Said(text)
        case ["p", scores]:
            return Scored(tuple(_score_from(score) for score in scores))
        case ["h", vector]:
            return Hidden(tuple(array("f", base64.b64decode(vector))))
        case ["s", name, axis, positions, values]:
            return Seen(name, axis, _array_from(positions), _array_from(values))
        case ["d", content]:
            return Drawn(content)
        case ["e", reason, cached, error, made]:
            return Ended(reason, cached, None if error is None else error_from(error), made)
    raise EngineLost(f"a worker's event is of unknown form: {str(data)[:80]}")


def error_to(error: VitralError) -> list[str]:
    """An error as the name of its class and its message."""
    return [type(error).__name__, str(error)]


def error_from(data: list[str]) -> VitralError:
    """The error again; a class that `vitral.errors` does not list becomes a plain VitralError."""
    name, message = data
    kind = getattr(errors, name) if name in errors.__all__ else VitralError
    return kind(message)


def _watch_from(data: Mapping[str, Any]) -> Watch:
    given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in data.items()}
    return Watch(**given)


def _array_to(values: np.ndarray[Any, Any]) -> list[Any]:
    return [values.dtype.str, values.shape, base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()]


def _array_from(data: list[Any]) -> np.ndarray[Any, Any]:
    kind, shape, text = data
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


def _score_to(score: TokenScore) -> list[Any]:
    return [score.token, score.logprob, score.top]


def _score_from(data: list[Any]) -> TokenScore:
    token, logprob, top = data
    return TokenScore(token, logprob, tuple((i, value) for i, value in top))
