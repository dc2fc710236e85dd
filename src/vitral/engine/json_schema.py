"""Which JSON schemas an answer can be held to: each keyword is honoured, an annotation, or refused by name.

The constraint library ignores keywords that it does not know, and a few that it knows it takes less
strictly than JSON Schema does. So the schema is read here first, in the meaning of Draft 2020-12; what
would be ignored or honoured by half is an error that names keyword and place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from vitral.engine.patterns import FORMATS, from_ecma
from vitral.errors import RequestError

__all__ = ["ANNOTATIONS", "HONOURED", "checked_schema"]

_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"additionalProperties", "items", "additionalItems"})
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_VALUES = frozenset({"type", "enum", "const", "required", "pattern", "format", "$ref", "uniqueItems"})
HONOURED = _SCHEMA_MAPS | _SCHEMA_LISTS | _SCHEMAS | _COUNTS | _NUMBERS | _VALUES
"""Keywords that every answer obeys."""
ANNOTATIONS = frozenset({
    "$comment", "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly",
    "contentMediaType", "contentEncoding", "contentSchema", "externalDocs", "xml", "discriminator",
})  # fmt: skip
"""Keywords that say nothing about which values are valid, as do all that begin with `x-`."""

_DRAFTS = (
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
)
_LIBRARY_FORMATS = frozenset({"ipv4", "uuid", "uri", "duration"})
_SILENT_FORMATS = frozenset({"float", "double", "password"})  # OpenAPI's; any number, any string
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_DEEPEST, _MOST_NODES = 96, 50_000


def checked_schema(schema: object) -> dict[str, Any]:
    """The schema as the constraint library shall read it; RequestError for what cannot be honoured.

    >>> checked_schema({"type": "array", "items": [{"type": "string"}], "description": "one name"})
    {'type': 'array', 'prefixItems': [{'type': 'string'}]}
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    walk = _Walk(schema)
    rewritten = walk.schema(schema, "#", 0)
    walk.check_references()
    assert isinstance(rewritten, dict)
    return rewritten


class _Walk:
    """One pass over a schema; `seen` are the places (JSON pointers) where a schema stands in the result."""

    def __init__(self, root: object) -> None:
        self.root_id = str(root.get("$id", "")) if isinstance(root, Mapping) else ""
        self.seen: set[str] = set()
        self.references: list[tuple[str, str]] = []
        self.nodes = 0

    def schema(self, schema: object, where: str, depth: int) -> dict[str, Any] | bool:
        self.nodes += 1
        if depth > _DEEPEST or self.nodes > _MOST_NODES:
            limit = f"{_DEEPEST} levels" if depth > _DEEPEST else f"{_MOST_NODES} schemas"
            raise RequestError(f"the JSON schema has more than {limit} ({_short(where)}); make it smaller")
        self.seen.add(where)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise RequestError(
                f"JSON schema, {_short(where)}: {_text(schema)} is no schema; allowed: an object or a boolean"
            )
        out: dict[str, Any] = {}
        extra: list[dict[str, Any]] = []
        for keyword, value in schema.items():
            self.keyword(keyword, value, schema, where, depth, out, extra)
        self.object_counts(schema, where)
        if extra:
            out["allOf"] = [*out.get("allOf", []), *extra]
        return out

    def keyword(
        self,
        keyword: object,
        value: Any,
        schema: Mapping[str, Any],
        where: str,
        depth: int,
        out: dict[str, Any],
        extra: list[dict[str, Any]],
    ) -> None:
        """Put one keyword into `out`, or what it means into `extra`, which is and-ed with it."""
        if not isinstance(keyword, str):
            raise RequestError(f"JSON schema, {_short(where)}: the keyword {keyword!r} is no text")
        place = f"{where}/{_pointer(keyword)}"
        below = depth + 1
        if keyword in _SCHEMA_MAPS:
            entries = _typed(value, Mapping, place, "an object")
            for name in entries:
                _spellable(name, place)
            names = {name: from_ecma(name, _at(place)) if keyword == "patternProperties" else name for name in entries}
            out[keyword] = {names[n]: self.schema(s, f"{place}/{_pointer(n)}", below) for n, s in entries.items()}
        elif keyword in _SCHEMA_LISTS or (keyword == "items" and isinstance(value, list)):
            entries = _typed(value, list, place, "a list")
            schemas = [self.schema(entry, f"{place}/{n}", below) for n, entry in enumerate(entries)]
            if keyword == "items":  # drafts up to 2019-09
                self.moved(place)
                keyword = "prefixItems"
            out[keyword] = schemas
        elif keyword == "additionalItems":
            if isinstance(schema.get("items"), list):  # else it says nothing
                out["items"] = self.schema(value, place, below)
                self.moved(place)
        elif keyword in _SCHEMAS:
            out[keyword] = self.schema(value, place, below)
        elif keyword in _COUNTS or keyword in _NUMBERS:
            out[keyword] = _number(value, place, whole=keyword in _COUNTS)
        elif keyword in ("const", "enum"):
            _spellable(value, place)
            out[keyword] = value
        elif keyword == "required":
            _spellable(value, place)
            out[keyword] = list(dict.fromkeys(_typed(value, list, place, "a list of names")))
        elif keyword == "pattern":
            out[keyword] = from_ecma(_typed(value, str, place, "a text"), _at(place))
        elif keyword == "format":
            extra += _format(_typed(value, str, place, "a text"), place)
        elif keyword == "$ref":
            out[keyword] = self.reference(_typed(value, str, place, "a text"), place)
        elif keyword == "uniqueItems" and value is False:
            pass
        elif keyword == "type":
            out[keyword] = value
        elif keyword == "$schema" and where == "#":
            if (
                str(value).removesuffix("#").replace("https://json-schema.org/draft-", "http://json-schema.org/draft-")
                not in _DRAFTS
            ):
                raise RequestError(f"JSON schema: $schema is {_text(value)}; allowed: {', '.join(_DRAFTS)}")
        elif (keyword == "$id" and where == "#") or keyword in ANNOTATIONS:
            pass
        elif not keyword.startswith("x-") or keyword == "x-guidance":
            honoured = ", ".join(sorted(HONOURED))
            raise RequestError(
                f"JSON schema, {_short(place)}: the keyword {keyword} cannot be honoured; remove it. Honoured: {honoured}"
            )

    def moved(self, place: str) -> None:
        self.seen = {seen for seen in self.seen if seen != place and not seen.startswith(place + "/")}

    def object_counts(self, schema: Mapping[str, Any], where: str) -> None:
        """Free names may come twice, so that counting them does not count properties."""
        least = schema.get("minProperties", 0)
        required = schema.get("required")
        sure = len(set(map(str, required))) if isinstance(required, list) else 0
        closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
        if isinstance(least, int | float) and least > max(1, sure + 1) and not closed:
            raise RequestError(
                f"JSON schema, {_short(where)}/minProperties: {least} cannot be honoured where names are free; "
                "list the names in required, or set additionalProperties to false"
            )

    def reference(self, reference: str, place: str) -> str:
        if self.root_id and reference.startswith(self.root_id):
            reference = reference.removeprefix(self.root_id) or "#"
        if reference not in ("#", "#/") and not reference.startswith("#/"):
            raise RequestError(
                f"JSON schema, {_short(place)}: {_text(reference)} is not in this document by its place; "
                "allowed: #/... as in #/$defs/NAME"
            )
        self.references.append((reference, place))
        return reference

    def check_references(self) -> None:
        for reference, place in self.references:
            if unquote(reference) not in self.seen:
                raise RequestError(f"JSON schema, {_short(place)}: no schema stands at {_text(reference)}")


def _format(name: str, place: str) -> list[dict[str, Any]]:
    if name in FORMATS:
        pattern, longest = FORMATS[name]
        return [{"pattern": pattern} if longest is None else {"pattern": pattern, "maxLength": longest}]
    if name in _BOUNDS:
        least, most = _BOUNDS[name]
        return [{"minimum": least, "maximum": most}]
    if name in _LIBRARY_FORMATS:
        return [{"format": name}]
    if name in _SILENT_FORMATS:
        return []
    allowed = ", ".join(sorted({*FORMATS, *_BOUNDS, *_LIBRARY_FORMATS, *_SILENT_FORMATS}))
    raise RequestError(f"JSON schema, {_short(place)}: the format {_text(name)} cannot be honoured; allowed: {allowed}")


def _number(value: object, place: str, *, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"JSON schema, {_short(place)}: {_text(value)} is no number")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if whole and (not isinstance(value, int) or value < 0):
        raise RequestError(f"JSON schema, {_short(place)}: {_text(value)} is no count; allowed: whole numbers from 0")
    return value


def _typed(value: Any, kind: type, place: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise RequestError(f"JSON schema, {_short(place)}: {_text(value)}; expected {expected}")
    return value


def _spellable(value: object, place: str) -> None:
    """Every character of the texts within has one spelling in the answers, so that a name can be told from others."""
    for text in _texts(value):
        odd = next((c for c in text if (c < " " and c not in "\b\f\n\r\t") or "\ud800" <= c < "\ue000"), None)
        if odd is not None:
            raise RequestError(
                f"JSON schema, {_short(place)}: a text holds the character U+{ord(odd):04X}, which answers do not spell"
            )


def _texts(value: object) -> Iterator[str]:
    stack = [value]
    while stack:
        match stack.pop():
            case str() as text:
                yield text
            case Mapping() as entries:
                stack += [*entries.keys(), *entries.values()]
            case list() as entries:
                stack += entries


def _at(place: str) -> str:
    return f"JSON schema, {_short(place)}:"


def _pointer(name: object) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _short(place: str) -> str:
    return place if len(place) <= 120 else f"{place[:60]}...{place[-50:]}"


def _text(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
