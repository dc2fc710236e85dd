"""Damage to texts with a grammar: JSON, of which configurations and vocabularies are made, and chat templates."""

from __future__ import annotations

import copy
import json
import re
from random import Random
from typing import Any

from tests.formats.mutate_bytes import NUMBERS, blind


class Pairs(list[Any]):
    """A JSON object as a list of [name, value], so that a name may stand twice."""


class Literal(str):
    """Text that goes into the JSON as it is."""


_LEAVES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 4, 8, 16, -1, -8, 0.0, -0.0, 0.5, 1.0, 8.0, 1e-300, 1e300, "", "8", "silu", "llama",
    "a" * 3000, "\x00", "é\U0001fa9f", "../../etc/passwd", "/dev/zero", ".", "config.json", [], [0], [[]], ["x"],
    *NUMBERS, -(1 << 63), 10**400, Literal("1e999"), Literal("-1e999"), Literal("NaN"), Literal("Infinity"),
    Literal('"\\ud800"'), Literal("9" * 5000), Literal("{}"), Literal('{"a": {"a": {}}}'), Literal("[" * 50 + "]" * 50),
    Literal("[" * 100_000), Literal("[" * 100_000 + "]" * 100_000), Literal('{"a":' * 20_000 + "1" + "}" * 20_000),
    Literal("[0,0,0,0,0]"), Literal("[8,8,8,8]"), Literal("[1099511627776,1099511627776]"), Literal("[-1,-1]"),
    Literal("[0,18446744073709551615]"), Literal("[16,8]"), Literal("[true,8]"), Literal("[8.0,8]"), Literal("[0,1e30]"),
    "F64", "BOOL", "I8", "U64", "F8_E4M3", "F16", "F32", "BF16", "F4", "bf16",
]  # fmt: skip


def json_text(data: bytes, rng: Random) -> bytes:
    """One to three values, names or places changed."""
    try:
        tree = json.loads(data, object_pairs_hook=lambda pairs: Pairs([list(pair) for pair in pairs]))
    except ValueError:
        return blind(data, rng, len(data))
    root = [tree]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[list[Any], int]] = []
        _places(root, places)
        holder, i = rng.choice(places)
        _change(holder, i, rng, places)
    return _dumped(root[0]).encode("utf-8", "surrogatepass")


def _places(holder: list[Any], found: list[tuple[list[Any], int]]) -> None:
    """Every (list, index) whose element is a value or a pair."""
    for i, value in enumerate(holder):
        found.append((holder, i))
        if isinstance(holder, Pairs) and isinstance(value[1], list):
            _places(value[1], found)
        elif not isinstance(holder, Pairs) and isinstance(value, list):
            _places(value, found)


def _change(holder: list[Any], i: int, rng: Random, places: list[tuple[list[Any], int]]) -> None:
    is_pair = isinstance(holder, Pairs)
    other, j = rng.choice(places)
    theirs = other[j][1] if isinstance(other, Pairs) else other[j]
    match rng.randrange(9):
        case 0 | 1 | 2 | 3:
            value = rng.choice(_LEAVES)
        case 4:
            value = copy.deepcopy(theirs)
        case 5 if holder is not places[0][0]:
            del holder[i]
            return
        case 6 if is_pair:
            holder.insert(rng.randrange(len(holder) + 1), [holder[i][0], rng.choice([holder[i][1], *_LEAVES[:20]])])
            return
        case 7 if is_pair:
            name = str(holder[i][0])
            holder[i][0] = rng.choice([name + "x", name[:-1], name.upper(), "", "a" * 3000, "__metadata__", "\x1b[2J"])
            return
        case _:
            mine = holder[i][1] if is_pair else holder[i]
            if not isinstance(mine, int | float):
                mine = 1
            value = rng.choice([mine + 1, mine - 1, mine * 2, -mine, Literal(f"{mine}.0"), str(mine), mine + (1 << 32)])
    if is_pair:
        holder[i][1] = value
    else:
        holder[i] = value


def _dumped(value: Any) -> str:
    """JSON, without recursion: what is copied into itself often enough is deeper than Python's stack."""
    text: list[str] = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Literal):
            text.append(str(value))
        elif isinstance(value, list):
            inside: list[Any] = [Literal("{" if isinstance(value, Pairs) else "[")]
            for i, each in enumerate(value):
                comma = "," if i else ""
                inside += (
                    [Literal(f"{comma}{json.dumps(each[0])}:"), each[1]]
                    if isinstance(value, Pairs)
                    else [Literal(comma), each]
                )
            waiting += reversed([*inside, Literal("}" if isinstance(value, Pairs) else "]")])
        else:
            text.append(json.dumps(value))
    return "".join(text)


_TAG = re.compile(r"(\{%.*?%\}|\{\{.*?\}\})", re.DOTALL)
_JINJA = [
    "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ 'a' * 10 ** 9 }}", "{{ 9 ** 9 ** 9 }}", "{% for m in messages %}",
    "{% endfor %}", "{% if x %}", "{% endif %}", "{{ ''.__class__ }}", "{{ messages | tojson }}", "{{ [messages] * 999 }}",
    "{{ raise_exception('no') }}", "{% set x = messages %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ '%s' % messages }}", "{{ '{:>999999999}'.format(1) }}", "{% include 'x' %}", "{% set x = [] %}{{ x.append(x) }}{{ x }}",
    "{{ messages | map('attr', '__init__') | list }}", "{{ lipsum(99999) }}", "{{ cycler('a') }}", "{% generation %}",
    "{% endgeneration %}", "{{ strftime_now('%Y' * 9999) }}", "{% break %}", "{{ namespace(a=namespace) }}", "{# ", "{% raw %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{% for a in range(999) %}" * 18 + "x" + "{% endfor %}" * 18,
    "{{ 'a'.center(10 ** 8) }}", "{{ ('a,' * 9999).split(',') | join('b' * 9999) }}", "{{ messages | batch(1, 'x' * 9999) | list }}",
    "{{ 'x' | indent(10 ** 9) }}", "{{ '\ud800' }}", "{{ 10 ** 4500 }}", "{{ 1 / 0 }}", "{{ '%0999999999d' % 1 }}",
    "{{ 'a\nb' | wordwrap(1, wrapstring='y' * 99999) }}", "{{ messages | sort(attribute='role') | sum }}", "{{ 1 << 10 ** 9 }}",
]  # fmt: skip


def template_text(data: bytes, rng: Random) -> bytes:
    """Tags of a template removed, repeated, exchanged, nested, or an attacker's put among them."""
    parts = _TAG.split(data.decode("utf-8", "replace"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(parts))
        match rng.randrange(6):
            case 0:
                del parts[i : i + rng.choice((1, 1, 2, 5))]
            case 1:
                parts[i:i] = parts[i : i + rng.choice((1, 2, 5))] * rng.choice((1, 1, 3, 100))
            case 2:
                j = rng.randrange(len(parts))
                parts[i], parts[j] = parts[j], parts[i]
            case 3 | 4:
                parts.insert(i, rng.choice(_JINJA))
            case _:
                parts[i] = parts[i].replace(
                    rng.choice(["m", "role", "'", "==", "[", "}", "-"]), rng.choice(["", "x", "**", "~ x *"])
                )
        parts = parts or [""]
    return "".join(parts).encode("utf-8", "surrogatepass")
