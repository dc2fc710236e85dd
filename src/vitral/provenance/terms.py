"""The catalogue of licences: one TOML file under `terms/` for each, read and checked.

A file holds what a licence grants, demands and forbids, clause by clause, in our own words, with the
place, the source, the day it was read, and how sure we are. Judging is in `judge.py`; nothing here
knows a particular licence.
"""

from __future__ import annotations

import datetime
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any, Literal, cast, get_args

from vitral.errors import LicenceError
from vitral.provenance.conditions import facts_of

__all__ = ["ACTS", "Act", "Clause", "Licence", "Right", "Sure", "Threshold", "catalogue", "licence"]

Sure = Literal["primary", "quoted", "secondary"]
"""primary: the text itself was read; quoted: the clause as quoted by others; secondary: only described by others."""

Act = Literal["use", "commercial", "modify", "share", "product", "serve", "outputs"]
ACTS: tuple[Act, ...] = get_args(Act)
Effect = Literal["duty", "deny", "ask", "term"]
DUTIES = (
    *("copy", "notice", "attribution", "display", "name", "changes", "pass-through", "policy"),
    *("documentation", "register", "contract", "share-alike"),
)
KINDS = ("model", "software", "content", "contract", "policy")


@dataclass(frozen=True, slots=True)
class Right:
    """Whether an act is granted: yes, no, silent (nothing restricts it), or unclear."""

    answer: str
    ref: str
    text: str
    pt: str
    unless: str
    sure: Sure


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that changes everything once it is passed.

    metric: "users" (monthly active) or "revenue" (US dollars). scope: "product", "entity" or "group" (with
    affiliates). window: "month" or "year". at: a fixed calendar month such as "2024-06", or "now".
    """

    metric: Literal["users", "revenue"]
    above: int
    scope: Literal["product", "entity", "group"]
    window: Literal["month", "year"]
    at: str


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause: what it does when it applies, and where it stands.

    say: words that the licence orders to be reproduced. file: the file that they belong in.
    prefix: what a name must begin with. instead: what to do or take instead, where that is plain.
    """

    id: str
    does: Effect
    ref: str
    text: str
    pt: str
    sure: Sure
    when: str = ""
    duty: str = ""
    say: str = ""
    file: str = ""
    prefix: str = ""
    instead: str = ""
    instead_pt: str = ""
    threshold: Threshold | None = None
    any_of: tuple[Threshold, ...] = ()

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The thresholds of which passing any one makes the clause apply; empty if it has none."""
        return (self.threshold,) if self.threshold else self.any_of


@dataclass(frozen=True, slots=True)
class Licence:
    """What one version of one licence says."""

    id: str
    name: str
    family: str
    kind: str
    licensor: str
    dated: str
    spdx: str
    tags: tuple[str, ...]
    links: tuple[str, ...]
    titles: tuple[str, ...]
    models: str
    summary: str
    summary_pt: str
    get: str
    policy: str
    restrictive: bool
    source: str
    read: str
    sure: Sure
    rights: Mapping[Act, Right]
    clauses: tuple[Clause, ...]
    law: str = ""
    gpl: bool = field(default=False)

    def clause(self, id: str) -> Clause:
        """A clause by its id; LicenceError if there is none.

        >>> licence("llama3.1").clause("name").prefix
        'Llama'
        """
        for clause in self.clauses:
            if clause.id == id:
                return clause
        raise LicenceError(f"{self.id} has no clause {id!r}; it has: {', '.join(c.id for c in self.clauses)}")


def licence(id: str) -> Licence:
    """A licence by its id, tag or SPDX identifier, in any case; LicenceError suggests the nearest.

    >>> licence("Apache-2.0").licensor
    'whoever licenses the work'
    """
    every = catalogue()
    wanted = id.strip().lower()
    for entry in every.values():
        if wanted == entry.id or wanted == entry.spdx.lower() or wanted in (tag.lower() for tag in entry.tags):
            return entry
    near = difflib.get_close_matches(wanted, every, n=3, cutoff=0.4)
    raise LicenceError(
        f"no licence is called {id!r}; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + "all of them: vitral licence list"
    )


@cache
def catalogue() -> dict[str, Licence]:
    """Every licence by its id, sorted; LicenceError where a file of ours contradicts itself.

    >>> len(catalogue()) >= 37
    True
    """
    found: dict[str, Licence] = {}
    for file in sorted(resources.files("vitral.provenance").joinpath("terms").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            entry = _read(file.name.removesuffix(".toml"), tomllib.loads(file.read_text("utf-8")))
            found[entry.id] = entry
    for entry in found.values():
        if entry.policy and entry.policy not in found:
            raise LicenceError(f"{entry.id}: its policy {entry.policy!r} is not in the catalogue")
    return found


def _read(stem: str, raw: dict[str, Any]) -> Licence:
    if raw.get("id") != stem:
        raise LicenceError(f"terms/{stem}.toml: id is {raw.get('id')!r}; it must be the file's name")
    reading = raw.pop("reading", {})
    sure = _sure(stem, reading.get("sure"))
    rights = {cast(Act, act): _right(stem, act, right, sure) for act, right in raw.pop("rights", {}).items()}
    clauses = tuple(_clause(stem, clause, sure) for clause in raw.pop("clause", []))
    _only_known(stem, raw, {entry.name for entry in fields(Licence)})
    if raw["kind"] not in KINDS:
        raise LicenceError(f"terms/{stem}.toml: kind is {raw['kind']!r}; allowed: {', '.join(KINDS)}")
    if raw["kind"] in ("model", "software") and set(rights) != set(ACTS):
        raise LicenceError(f"terms/{stem}.toml: rights must name each of {', '.join(ACTS)}; found {', '.join(rights)}")
    plain = {
        name: str(raw.get(name, "")) for name in ("name", "kind", "licensor", "dated", "models", "get", "policy", "law")
    }
    lists = {name: tuple(raw.get(name, ())) for name in ("tags", "links", "titles")}
    made: dict[str, Any] = {**plain, **lists}
    return Licence(
        id=stem,
        family=raw.get("family", stem),
        spdx=raw.get("spdx", f"LicenseRef-{stem}"),
        summary=raw["summary"],
        summary_pt=raw["summary_pt"],
        restrictive=bool(raw.get("restrictive", False)),
        gpl=bool(raw.get("gpl", False)),
        source=reading["source"],
        read=_day(stem, reading.get("read")),
        sure=sure,
        rights=rights,
        clauses=clauses,
        **made,
    )


def _right(stem: str, act: str, raw: dict[str, Any], sure: Sure) -> Right:
    if act not in ACTS or raw.get("is") not in ("yes", "no", "silent", "unclear"):
        raise LicenceError(f"terms/{stem}.toml: right {act!r} = {raw.get('is')!r} is not one that is known")
    _only_known(stem, raw, {"is", "ref", "text", "pt", "unless", "sure"})
    facts_of(raw.get("unless", ""))
    return Right(
        raw["is"],
        raw.get("ref", ""),
        raw.get("text", ""),
        raw.get("pt", ""),
        raw.get("unless", ""),
        _sure(stem, raw.get("sure", sure)),
    )


def _clause(stem: str, raw: dict[str, Any], sure: Sure) -> Clause:
    _only_known(stem, raw, {entry.name for entry in fields(Clause)})
    if raw.get("does") not in get_args(Effect) or (raw["does"] == "duty") != (raw.get("duty") in DUTIES):
        raise LicenceError(
            f"terms/{stem}.toml: clause {raw.get('id')!r} must be duty (of a known kind), deny, ask or term"
        )
    facts_of(raw.get("when", ""))
    one = raw.pop("threshold", None)
    many = raw.pop("any_of", ())
    raw["sure"] = _sure(stem, raw.get("sure", sure))
    return Clause(**raw, threshold=_threshold(one) if one else None, any_of=tuple(_threshold(each) for each in many))


def _threshold(raw: dict[str, Any]) -> Threshold:
    return Threshold(raw["metric"], raw["above"], raw["scope"], raw["window"], raw["at"])


def _sure(stem: str, found: object) -> Sure:
    if found not in get_args(Sure):
        raise LicenceError(f"terms/{stem}.toml: sure is {found!r}; allowed: {', '.join(get_args(Sure))}")
    return cast(Sure, found)


def _day(stem: str, found: object) -> str:
    if not isinstance(found, datetime.date):
        raise LicenceError(f"terms/{stem}.toml: reading.read must be a date")
    return found.isoformat()


def _only_known(stem: str, raw: Mapping[str, Any], allowed: set[str]) -> None:
    for key in raw:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            raise LicenceError(
                f"terms/{stem}.toml: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
