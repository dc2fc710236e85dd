from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.grammar import Constraint, Grammars
from vitral.engine.json_schema import ANNOTATIONS, HONOURED, checked_schema
from vitral.errors import RequestError

GRAMMARS = Grammars(ByteVocabulary(), 257)

# Valid by the suite, yet never produced; docs/reference/constraints.md says so. Nothing invalid is ever produced.
NARROWER = {
    "format.json": "formats are obeyed, not taken for annotations",
    "optional/format/": "leap seconds, A-labels, quoted mail names and IPv4 inside IPv6 are not written",
    "optional/ecmascript-regex.json": "control characters have no spelling",
    "optional/float-overflow.json": "whole numbers are written without an exponent",
}


def spellings(value: Any) -> Iterator[Any]:
    """The same JSON value with its properties in every order, whole numbers without a fraction."""
    if isinstance(value, dict):
        entries = [[(key, spelled) for spelled in spellings(item)] for key, item in value.items()]
        for some in itertools.product(*entries):
            yield from map(dict, itertools.permutations(some))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(spellings, value)))
    else:
        yield int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**64 else value


def can_write(constraint: Constraint, value: Any) -> bool:
    fresh = GRAMMARS.start(constraint, stop_ids=[256])._matcher
    for spelled in itertools.islice(spellings(value), 1000):
        text = json.dumps(spelled, ensure_ascii=False).encode("utf-8", "surrogatepass")
        matcher = fresh.deep_copy()
        if matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting():
            return True
    return False


def keywords(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            if key not in ("const", "enum", "properties", "patternProperties", "$defs", "definitions", "default"):
                yield from keywords(value)
            elif key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
                yield from itertools.chain.from_iterable(map(keywords, value.values()))
    elif isinstance(schema, list):
        yield from itertools.chain.from_iterable(map(keywords, schema))


def test_the_public_suite_gets_exactly_its_valid_instances_or_a_refusal(data_dir: Path) -> None:
    folder = data_dir / "json-schema-test-suite" / "tests" / "draft2020-12"
    served, refused, narrower = 0, 0, 0
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        for group in json.loads(path.read_text("utf-8")):
            try:
                constraint = Constraint.json_schema(group["schema"])
                GRAMMARS.start(constraint, stop_ids=[256])
            except RequestError:
                refused += 1
                continue
            unknown = {k for k in keywords(group["schema"]) if not k.startswith("x-")} - HONOURED - ANNOTATIONS
            assert unknown <= {"$schema", "$id"}, f"{name}, {group['description']}: served in spite of {unknown}"
            served += 1
            for test in group["tests"]:
                if not test["valid"]:
                    assert not can_write(constraint, test["data"]), f"{name}: {group['description']}: {test}"
                elif not can_write(constraint, test["data"]):
                    assert any(name.startswith(known) for known in NARROWER), f"{name}: {group['description']}: {test}"
                    narrower += 1
    assert served >= 190 and refused >= 200 and narrower < 60


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not"),
        ({"items": {"uniqueItems": True}}, "#/items/uniqueItems"),
        ({"anyOf": [{}, {"if": {}}]}, "#/anyOf/1/if"),
        ({"minLenght": 3}, "#/minLenght"),
        ({"$defs": {"a/b~": {"contains": {}}}}, "#/$defs/a~1b~0/contains"),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
        ({"nullable": True}, "#/nullable"),
        ({"format": "regex"}, "#/format"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum"),
        ({"minItems": 1.5}, "#/minItems"),
        ({"$ref": "file:///etc/passwd"}, "#/$ref"),
        ({"$ref": "#/default", "default": {"not": {}}}, "#/$ref"),
        ({"pattern": "(?=a)"}, "#/pattern"),
        ({"pattern": "(?i)a"}, "#/pattern"),
        ({"pattern": "[a&&b]"}, "#/pattern"),
        ({"patternProperties": {"\\bx": {}}}, "#/patternProperties"),
        ({"const": "\u0001"}, "#/const"),
        ({"enum": ["\ud800"]}, "#/enum"),
        ({"type": "object", "minProperties": 2}, "#/minProperties"),
        ({"properties": []}, "#/properties"),
        ({"anyOf": [1]}, "#/anyOf/0"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema"),
        ([], "no schema"),
        ({"maximum": float("nan")}, ""),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf"),
        (False, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_place(schema: object, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        Constraint.json_schema(schema)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_too_deep_is_refused_before_anything_recurses_into_it() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="96 levels"):
        Constraint.json_schema(schema)


def test_a_schema_that_only_refers_to_itself_is_refused() -> None:
    with pytest.raises(RequestError, match="refers to itself"):
        GRAMMARS.start(Constraint.json_schema({"$ref": "#"}), stop_ids=[256])


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (
            {"properties": {"foo": {"type": "integer"}}},
            ['{"foo":1,"b":"x"}'],
            ['{"\\u0066oo":"x"}', '{"f":1,"foo":""}'],
        ),
        ({"properties": {"a\nb": {"type": "integer"}}}, ['{"a\\nb":1}'], ['{"a\\u000ab":"x"}', '{"a\\nb":"x"}']),
        ({"pattern": "^.$"}, ['"a"', '"é"'], ['"\\r"', '"\u2028"', '"ab"']),
        ({"pattern": "^\\S\\s$"}, ['"a\ufeff"'], ['"\ufeffa"', '"a\x85"']),
        ({"pattern": "^[\\s]$"}, ['"\ufeff"'], ['"\x85"']),
        ({"pattern": "^\\ud83d\\ude00\\u0041$"}, ['"😀A"'], ['"😀"']),
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"']),
        ({"format": "int32"}, ["2147483647", '"x"'], ["2147483648"]),
        ({"format": "hostname"}, ['"a-b.c"', '"a"'], ['"a--b-.c"', '"xn--x"', '"' + "a." * 127 + 'a"']),
        ({"items": [{"type": "string"}], "additionalItems": False}, ['["a"]', "[]"], ["[1]", '["a",1]']),
        ({"type": "object"}, ["{}", '{\n  "a": [1, 2]\n}'], ['{  "a":1}', " {}", '{"a":1}\n']),
    ],
)
def test_texts_have_one_spelling_and_patterns_mean_what_ecma_says(schema: Any, yes: list[str], no: list[str]) -> None:
    fresh = GRAMMARS.start(Constraint.json_schema(schema), stop_ids=[256])._matcher

    def accepts(text: str) -> bool:
        matcher = fresh.deep_copy()
        return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()

    assert [text for text in yes if not accepts(text)] == []
    assert [text for text in no if accepts(text)] == []


def test_references_are_followed_only_to_schemas() -> None:
    tree = {"$id": "https://x.org/t", "type": "object", "properties": {"next": {"$ref": "https://x.org/t#"}}}
    assert checked_schema(tree)["properties"]["next"] == {"$ref": "#"}
    assert can_write(Constraint.json_schema(tree), {"next": {"next": {}}})
    assert not can_write(Constraint.json_schema(tree), {"next": {"next": 1}})
