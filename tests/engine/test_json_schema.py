from __future__ import annotations

import ipaddress
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vocabularies import ByteVocabulary
from vitral.engine.grammar import Constraint, Grammars
from vitral.engine.json_schema import ANNOTATIONS, HONOURED, checked_schema
from vitral.errors import RequestError

GRAMMARS = Grammars(ByteVocabulary(), 257)

# Valid by the suite, yet never produced: how many, and why. Nothing invalid is ever produced.
NARROWER = {
    "format.json": (10, "formats are obeyed, not taken for annotations"),
    "optional/format/hostname.json": (15, "A-labels are not written"),
    "optional/format/time.json": (6, "leap seconds are not written"),
    "optional/format/date-time.json": (2, "leap seconds are not written"),
    "optional/ecmascript-regex.json": (2, "control characters have no spelling"),
}
# Why a schema of the suite is refused, by what the refusal says; each says one of these.
REFUSALS = {
    "a keyword": r"#/\S+: the keyword \S+ cannot be honoured",
    "a reference": r"\$ref: .* is not in this document by its place|no schema stands at",
    "a format": r"#/format: the format .* cannot be honoured; allowed: ",
    "a draft of one's own": r"\$schema is .*; allowed: ",
    "a character": r"#/\w+: a text holds the character U\+|#/pattern: .* holds the escape",
    "no text fulfils it": "Unsatisfiable schema",
    "oneOf or patterns that may overlap": "oneOf whose schemas may overlap|patternProperty regexes .* are not disjoint",
    "a number with too many digits": "float range: |has too many digits",
}
SUITE = {"served": 198, "refused": 263, "valid and written": 585, "valid and not written": 35, "invalid": 543}


def spellings(value: Any) -> Iterator[Any]:
    """The same JSON value with its properties in every order, whole numbers without a fraction."""
    if isinstance(value, dict):
        entries = [[(key, spelled) for spelled in spellings(item)] for key, item in value.items()]
        for some in itertools.product(*entries):
            yield from map(dict, itertools.permutations(some))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(spellings, value)))
    else:
        yield int(Decimal(repr(value))) if isinstance(value, float) and value.is_integer() else value


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
    if not folder.is_dir():
        pytest.skip(f"the JSON-Schema-Test-Suite is not at {folder}")
    counts, narrower, reasons = Counter[str](), Counter[str](), Counter[str]()
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        for group in json.loads(path.read_text("utf-8")):
            where = f"{name}: {group['description']}"
            try:
                constraint = Constraint.json_schema(group["schema"])
            except RequestError as error:
                fitting = [why for why, pattern in REFUSALS.items() if re.search(pattern, str(error))]
                counts["refused"] += 1
                reasons[fitting[0] if len(fitting) == 1 else f"{where}: {error}"] += 1
                continue
            unknown = {k for k in keywords(group["schema"]) if not k.startswith("x-")} - HONOURED - ANNOTATIONS
            assert unknown <= {"$schema", "$id"}, f"{where}: served in spite of {unknown}"
            counts["served"] += 1
            for test in group["tests"]:
                written = can_write(constraint, test["data"])
                if not test["valid"]:
                    assert not written, f"{where}: {test}"
                    counts["invalid"] += 1
                elif written:
                    counts["valid and written"] += 1
                else:
                    assert name in NARROWER, f"{where}: {test}"
                    counts["valid and not written"] += 1
                    narrower[name] += 1
    assert narrower == {name: n for name, (n, _) in NARROWER.items()}
    assert set(reasons) == set(REFUSALS), reasons
    assert counts == SUITE


def test_the_counts_of_the_suite_are_those_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "constraints.md").read_text("utf-8")
    assert all(re.search(rf"\b{n}\b", page) for n in SUITE.values())
    assert sum(n for n, _ in NARROWER.values()) == SUITE["valid and not written"]


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
        (
            {"format": "email"},
            ['"joe.bloggs@example.com"', '"\\"joe bloggs\\"@example.com"', '"joe@[127.0.0.1]"', '"joe@[IPv6:::1]"'],
            ['"joe@"', '"joe bloggs@example.com"', '"joe@[127.0.0.300]"', '"a..b@example.com"', '"joe@[::1]"'],
        ),
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


def test_ipv6_is_what_the_standard_library_reads() -> None:
    fresh = GRAMMARS.start(Constraint.json_schema({"format": "ipv6"}), stop_ids=[256])._matcher
    rng = random.Random(6)
    seen = set()
    for _ in range(400):
        parts = [rng.choice(["0", "ffff", "1a", "12345", "", "9"]) for _ in range(rng.randint(1, 9))]
        text = ":".join(parts + rng.choice([[], ["192.0.2.1"], ["192.0.2.256"]]))
        text = rng.choice([text, f"::{text}", text.replace(":", "::", 1), f"{text}::"])
        try:
            right = str(ipaddress.IPv6Address(text)) != ""
        except ValueError:
            right = False
        matcher = fresh.deep_copy()
        quoted = f'"{text}"'.encode()
        found = matcher.try_consume_tokens(list(quoted)) == len(quoted) and matcher.is_accepting()
        assert found == right, text
        seen.add(right)
    assert seen == {True, False}
