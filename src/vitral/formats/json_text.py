"""JSON from strangers: of bounded size, an object at the top, no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from vitral.errors import FormatError
from vitral.formats.bounds import map_file

__all__ = ["parse_object", "read_object"]

_LARGEST = 8 << 20  # bytes; the index of the largest public checkpoint of these families has under 1 MB
_MOST_BRACKETS = 1 << 18  # each may become an object of some hundred bytes
_MOST_COMMAS = 1 << 20


def read_object(path: Path, largest: int = _LARGEST) -> dict[str, Any]:
    """The object in a JSON file; FormatError for anything else."""
    data = map_file(path)
    if data.size > largest:
        raise FormatError(f"{path} has {data.size} bytes; a JSON file of at most {largest} is allowed")
    return parse_object(data.tobytes(), path)


def parse_object(data: bytes, source: object) -> dict[str, Any]:
    """The object in a JSON text; `source` names it in messages.

    >>> parse_object(b'{"dim": 64}', "params.json")
    {'dim': 64}
    """
    brackets, commas = data.count(b"[") + data.count(b"{"), data.count(b",")
    if brackets > _MOST_BRACKETS or commas > _MOST_COMMAS:
        raise FormatError(
            f"{source}: the JSON has {brackets} brackets and {commas} commas; "
            f"at most {_MOST_BRACKETS} and {_MOST_COMMAS} are allowed"
        )
    try:
        found = json.loads(data.decode(), object_pairs_hook=_without_twins, parse_constant=_refused)
    except UnicodeDecodeError as error:
        raise FormatError(f"{source} is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise FormatError(f"{source}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{source}: the JSON holds a {type(found).__name__}; an object is wanted")
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twin[:80]!r} appears twice")
    return found


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
