"""Licences, for Python: may this model be used for that, what a licence says, how two differ, what must travel.

>>> judgement = check("mistralai/Mixtral-8x7B-Instruct-v0.1", Use(share_weights=True, share_product=False, modify=True))
>>> judgement.outcome.words
'allowed with duties'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitral.provenance.gather import gather
from vitral.provenance.judge import ACT_NAMES, judge
from vitral.provenance.judgement import Finding, Judgement, Outcome, cite
from vitral.provenance.notices import notice_files, write_notices
from vitral.provenance.report import report, to_html, to_json
from vitral.provenance.terms import Clause, Licence, Right, catalogue, licence
from vitral.provenance.use import MadeFrom, Use, read_use

__all__ = [
    "ACT_NAMES",
    "Clause",
    "Difference",
    "Finding",
    "Judgement",
    "Licence",
    "MadeFrom",
    "Outcome",
    "Right",
    "Use",
]
__all__ += [
    "catalogue",
    "check",
    "cite",
    "compare",
    "licence",
    "notice_files",
    "read_use",
    "report",
    "to_html",
    "to_json",
]
__all__ += ["write_notices"]


def check(
    model: str,
    use: Use,
    path: Path | None = None,
    declared: Mapping[str, str] | None = None,
    find: Callable[[str], Path | None] = lambda name: None,
) -> Judgement:
    """Judge an intended use of a model: in a file or folder (`path`), or of a name alone.

    model: what it is called, best as owner/name. declared: labels from elsewhere, by where they stand. find: where a
    parent's files are, by its name (`vitral.hub.at_hand`); None where they are not on this machine.
    """
    return judge(gather(path, model, use, declared, find), use)


@dataclass(frozen=True, slots=True)
class Difference:
    """What two licences say of the same thing; an empty side says nothing of it."""

    about: str
    first: str
    second: str
    same: bool


def compare(first: str, second: str) -> tuple[Difference, ...]:
    """Two licences side by side: rights, then duties and bars, by what they are about.

    >>> [each for each in compare("llama3", "llama3.1") if each.about == "training other models on what it writes"][0].first
    'no (§1.b.v)'
    """
    one, other = licence(first), licence(second)
    rows = [
        Difference(ACT_NAMES[act][0], a, b, a.split()[0] == b.split()[0])
        for act in one.rights
        if act in other.rights
        for a, b in [(_right(one.rights[act]), _right(other.rights[act]))]
    ]
    sides: list[dict[tuple[str, str], Clause]] = [{}, {}]
    for side, entry in zip(sides, (one, other), strict=True):
        policy = catalogue().get(entry.policy)
        for clause in entry.clauses + (policy.clauses if policy else ()):
            side.setdefault((clause.duty or clause.does, clause.id), clause)
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (side.get(key) for side in sides)
        texts = tuple(
            f"{clause.text}{f' “{clause.say}”' if clause.say else ''} ({clause.ref})" if clause else ""
            for clause in (a, b)
        )
        same = bool(a and b and (a.text, a.say, a.thresholds, a.prefix) == (b.text, b.say, b.thresholds, b.prefix))
        rows.append(Difference(f"{key[0]}: {key[1]}", texts[0], texts[1], same))
    return tuple(rows)


def _right(right: Right) -> str:
    return f"{right.answer} ({right.ref})" if right.ref else f"{right.answer}"
