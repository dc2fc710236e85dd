"""Reads a request's JSON as strictly as a stranger's deserves: size, time, UTF-8, depth, duplicate keys, numbers.

Every reader after this one sees the same plain data; there is nothing left to read in two ways.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from vitral.serve.faults import ApiError
from vitral.serve.unsupported import UNSUPPORTED, without_needless

__all__ = ["Body", "Limits", "parse_json", "read_body", "validated"]

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = ("str", "int", "float", "bool", "list", "dict")
_THREAD_FROM = 256 << 10  # bytes from which parsing leaves the event loop


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes of a body, nesting of its JSON, seconds to send it."""

    body_bytes: int = 8 << 20
    depth: int = 64
    body_s: float = 30.0


class Body(BaseModel):
    """A request's parameters. Unknown ones are refused, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, if it is small and arrives in time."""
    too_large = ApiError(413, "body_too_large", f"the body is larger than the {limits.body_bytes} bytes allowed")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise ApiError(408, "body_timeout", f"the body did not arrive within {limits.body_s:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "disconnected", "the client left before its request was complete") from None
    return b"".join(pieces)


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as plain data; ApiError 400 says what is wrong with it."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "wrong_content_type", f"the content type is {kind!r}; send application/json")
    data = await read_body(request, limits)
    if len(data) < _THREAD_FROM:
        return parse_json(data, limits.depth)
    return await asyncio.to_thread(parse_json, data, limits.depth)


def parse_json(data: bytes, depth: int) -> Any:
    """Strict JSON.

    >>> parse_json(b'{"a": 1, "a": 2}', 64)
    Traceback (most recent call last):
    vitral.serve.faults.ApiError: the key 'a' occurs twice in one JSON object; send it once
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_utf8", f"the body is not UTF-8: byte {error.start} is wrong") from None
    if data.count(b"{") + data.count(b"[") > depth and _depth(data) > depth:
        raise ApiError(400, "too_deep", f"the JSON is nested more than {depth} deep; flatten it")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {str(error)[:200]}") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(
                400, "invalid_unicode", "a string holds half of a surrogate pair; it is no character"
            ) from None
    return value


def validated(model: type[B], data: Any) -> B:
    """The parameters, checked; the first that is wrong is named, and why one that others know is refused here."""
    if not isinstance(data, dict):
        raise ApiError(400, "invalid_type", f"the body is a JSON {type(data).__name__}; an object is wanted")
    data = without_needless(data)
    for name in data.keys() & UNSUPPORTED.keys() - model.model_fields.keys():
        raise ApiError(400, "unsupported_parameter", f"{name} is not supported: {UNSUPPORTED[name]}", param=name)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = _clearest(error.errors(include_url=False))
        where = _path(first["loc"])
        if first["type"] == "extra_forbidden":
            names = ", ".join(sorted(field.alias or name for name, field in model.model_fields.items()))
            known = f"; known here: {names}" if len(first["loc"]) == 1 else ""
            raise ApiError(
                400, "unknown_parameter", f"{where} is not a parameter of this route{known}", param=where
            ) from None
        found = "" if first["type"] == "missing" else f" (found {str(first['input'])[:80]!r})"
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}{found}"
        code = "missing_parameter" if first["type"] == "missing" else "invalid_value"
        raise ApiError(400, code, message, param=where) from None


def _clearest(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first, or where its value may be of several kinds, what is wrong in the kind that comes closest."""
    first, *others = errors
    before = first["loc"][:-1]
    if not before or not _is_kind(first["loc"][-1]):
        return first
    same = [each for each in others if each["loc"][: len(before)] == before and len(each["loc"]) > len(first["loc"])]
    return max(same, key=lambda each: len(each["loc"]), default=first)


def _is_kind(part: int | str) -> bool:
    """Whether a part of a location names a branch of a union, not a field."""
    return isinstance(part, str) and (not part.isidentifier() or part in _KINDS or part[0].isupper())


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; the names of a union's branches are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not _is_kind(part):
            text += f".{part}" if text else part
    return text or "body"


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for match in _STRUCTURE.finditer(data):
        if match[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in b"]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ApiError(
                    400, "duplicate_key", f"the key {key[:80]!r} occurs twice in one JSON object; send it once"
                )
            seen.add(key)
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
