"""The intended use of a model: who, what for, how many users; every fact may be unknown.

`None` means that nobody said. A verdict that depends on such a fact names it and asks.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vitral.errors import LicenceError
from vitral.provenance.terms import Threshold

__all__ = [
    "ACTORS",
    "EU",
    "FIELDS",
    "PURPOSES",
    "RECEIVED",
    "MadeFrom",
    "Role",
    "Use",
    "answered",
    "askable",
    "passes",
    "read_use",
]

PURPOSES = ("research", "evaluation", "personal", "internal", "product")
RECEIVED = ("direct", "in_product", "as_service")
ACTORS = ("company", "person", "research", "public")
Role = Literal["model", "base", "adapter", "merged", "dataset", "outputs"]

FIELDS = (
    *("military", "weapons", "nuclear", "espionage", "critical-infrastructure", "surveillance", "biometrics"),
    *("medical", "legal", "financial", "employment", "credit", "immigration", "law-enforcement"),
    *("automated-decisions", "disinformation", "impersonation", "undisclosed-machine-text", "malware", "adult"),
)
"""Fields of use that some licence bars or limits; any other field needs no mention."""

EU = frozenset(
    [
        "AT",
        "BE",
        "BG",
        "CY",
        "CZ",
        "DE",
        "DK",
        "EE",
        "ES",
        "FI",
        "FR",
        "GR",
        "HR",
        "HU",
        "IE",
        "IT",
        "LT",
        "LU",
        "LV",
        "MT",
        "NL",
        "PL",
        "PT",
        "RO",
        "SE",
        "SI",
        "SK",
    ]
)
"""Members of the European Union; the EEA, Switzerland and the United Kingdom are not."""


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """Something that the model is made from, as the user states it.

    generated_by: "you" or "other", for data that a model wrote.
    """

    role: Role
    name: str
    licence: str = ""
    generated_by: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """What is meant to be done, by whom. Numbers of users are per month, revenue is in US dollars.

    users: by month ("2024-06"), "now", "never_above" (at any time), of all products of the group;
    "product": of the one product, now. revenue: "month", "year" of the group, "product_month".

    >>> Use(domicile="DE").facts()["eu"]
    True
    >>> Use().facts()["commercial"] is None
    True
    """

    who: str = ""
    domicile: str | None = None
    actor: str | None = None
    users: Mapping[str, int] = field(default_factory=dict)
    revenue: Mapping[str, int] = field(default_factory=dict)
    purpose: str | None = None
    commercial: bool | None = None
    production: bool | None = None
    fields: tuple[str, ...] | None = None
    modify: bool | None = None
    share_weights: bool | None = None
    share_product: bool | None = None
    serve: bool | None = None
    train_on_outputs: bool | None = None
    remove_safety: bool | None = None
    text_only: bool | None = None
    received: str = "direct"
    competes: bool | None = None
    name: str = ""
    licence: str = ""
    multimodal: bool | None = None
    made_from: tuple[MadeFrom, ...] = ()

    def __post_init__(self) -> None:
        _one_of("purpose", self.purpose, PURPOSES)
        _one_of("received", self.received, RECEIVED)
        _one_of("actor", self.actor, ACTORS)
        for name in self.fields or ():
            _one_of("fields", name, FIELDS)
        if self.domicile is not None and not (
            isinstance(self.domicile, str)
            and len(self.domicile) == 2
            and self.domicile.isalpha()
            and self.domicile.isupper()
        ):
            raise LicenceError(f"domicile is {self.domicile!r}; two capital letters are wanted, such as DE or BR")
        for where, numbers in (("users", self.users), ("revenue", self.revenue)):
            for key, number in numbers.items():
                if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                    raise LicenceError(f"{where}.{key} is {number!r}; a whole number of at least 0 is wanted")

    def facts(self) -> dict[str, object]:
        """The facts that conditions ask about, as far as they concern the use."""
        removes = self.remove_safety
        return {
            **{
                name: getattr(self, name)
                for name in ("commercial", "production", "purpose", "fields", "text_only", "received")
            },
            "competes": self.competes,
            "domicile": self.domicile,
            "serves": self.serve,
            "modifies": self.modify,
            "shares_weights": self.share_weights,
            "shares_product": self.share_product,
            "trains_on_outputs": self.train_on_outputs,
            "removes_safety": False if removes is None and self.modify is False else removes,
            "company": None if self.actor is None else self.actor == "company",
            "eu": None if self.domicile is None else self.domicile in EU,
            "copies_leave": _either(self.share_weights, self.share_product),
            "shares": _either(self.share_weights, self.share_product, self.serve),
        }


def passes(threshold: Threshold, use: Use) -> tuple[bool | None, str]:
    """Whether a threshold is passed, and the fact that decided it or would.

    A figure of the group bounds one of its products, and a year's revenue bounds a month's.

    >>> frozen = Threshold("users", 700_000_000, "group", "month", "2024-06")
    >>> passes(frozen, Use(users={"2024-06": 50_000_000, "now": 900_000_000}))
    (False, 'users.2024-06')
    >>> passes(frozen, Use(users={"now": 900_000_000}))
    (None, 'users.2024-06')
    """
    exact, bounds = _figures(threshold)
    known = use.users if threshold.metric == "users" else use.revenue
    if exact in known:
        return known[exact] > threshold.above, f"{threshold.metric}.{exact}"
    for bound in bounds:
        if bound in known and known[bound] <= threshold.above:
            return False, f"{threshold.metric}.{bound}"
    return None, f"{threshold.metric}.{exact}"


def _figures(threshold: Threshold) -> tuple[str, tuple[str, ...]]:
    """The figure that a threshold asks for, and those that can only be larger."""
    if threshold.metric == "users":
        if threshold.at != "now":
            return threshold.at, ("never_above",)
        return ("product", ("now", "never_above")) if threshold.scope == "product" else ("now", ("never_above",))
    if threshold.scope == "product":
        return "product_month", ("month", "year")
    return ("month", ("year",)) if threshold.window == "month" else ("year", ())


_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_WHO, _WHAT = {"name", "domicile", "kind", "users", "revenue"}, {entry.name for entry in fields(Use)}
_WHAT -= {"who", "domicile", "actor", "users", "revenue", "licence", "multimodal", "made_from"}


def read_use(path: Path) -> Use:
    """The use that a TOML file states; LicenceError names what cannot be read, and the nearest key."""
    try:
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise LicenceError(f"{path} cannot be opened: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LicenceError(f"{path} is not valid TOML: {error}") from None
    return use_of(path, raw)


def use_of(path: Path | str, raw: dict[str, Any]) -> Use:
    """The use that tables state, as they stand in a TOML file; `path` says in errors where they came from."""
    _keys(path, "", raw, {"who", "what", "model", "made_from"})
    who, what, model = (_table(path, raw, name) for name in ("who", "what", "model"))
    _keys(path, "who.", who, _WHO)
    _keys(path, "what.", what, _WHAT)
    _keys(path, "model.", model, {"licence", "multimodal"})
    for name in ("commercial", "production", *_FLAGS):
        if not isinstance(what.get(name), bool | None):
            raise LicenceError(f"{path}: what.{name} is {what[name]!r}; true or false is wanted")
    if not isinstance(model.get("multimodal"), bool | None):
        raise LicenceError(f"{path}: model.multimodal is {model['multimodal']!r}; true or false is wanted")
    if not isinstance(what.get("fields", []), list):
        raise LicenceError(f'{path}: what.fields is {what["fields"]!r}; a list is wanted, such as ["medical"]')
    made = raw.get("made_from", [])
    if not isinstance(made, list) or not all(isinstance(entry, dict) for entry in made):
        raise LicenceError(f"{path}: made_from is written [[made_from]], once for each part")
    _written(path, what, "what.", "name")
    parts = {**what, **({"fields": tuple(what["fields"])} if "fields" in what else {})}
    return Use(
        who=_written(path, who, "who.", "name"),
        domicile=who.get("domicile"),
        actor=who.get("kind"),
        users=_numbers(path, who, "users"),
        revenue=_numbers(path, who, "revenue"),
        licence=_written(path, model, "model.", "licence"),
        multimodal=model.get("multimodal"),
        made_from=tuple(_made_from(path, entry) for entry in made),
        **parts,
    )


_FLAGS = (
    "modify",
    "share_weights",
    "share_product",
    "serve",
    "train_on_outputs",
    "remove_safety",
    "text_only",
    "competes",
)


def _numbers(path: Path | str, who: dict[str, Any], name: str) -> dict[str, int]:
    found = _table(path, who, name, "who.")
    allowed = {"now", "never_above", "product"} if name == "users" else {"month", "year", "product_month"}
    for key in found:
        if name == "users" and key[:1].isdigit() and not _MONTH.fullmatch(key):
            raise LicenceError(f"{path}: who.users.{key} is no month; a month is written as in 2024-06")
        if not (name == "users" and _MONTH.fullmatch(key)):
            _keys(path, f"who.{name}.", {key: None}, allowed)
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in found.items()
    }


def _made_from(path: Path | str, raw: dict[str, Any]) -> MadeFrom:
    _keys(path, "made_from.", raw, {"role", "name", "licence", "generated_by"})
    _one_of("made_from.role", raw.get("role"), get_args(Role)[1:], needed=True)
    _one_of("made_from.generated_by", raw.get("generated_by"), ("you", "other"))
    return MadeFrom(
        raw["role"], *(_written(path, raw, "made_from.", name) for name in ("name", "licence", "generated_by"))
    )


def _table(path: Path | str, raw: dict[str, Any], name: str, within: str = "") -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, dict):
        raise LicenceError(f"{path}: {within}{name} is {found!r}; a table is wanted: [{within}{name}]")
    return found


def _written(path: Path | str, raw: dict[str, Any], where: str, name: str) -> str:
    found = raw.get(name, "")
    if not isinstance(found, str):
        raise LicenceError(f"{path}: {where}{name} is {found!r}; a text is wanted, in quotation marks")
    return found


def _keys(path: Path | str, where: str, raw: Mapping[str, Any], allowed: set[str]) -> None:
    for key in raw:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(allowed))}"
            raise LicenceError(f"{path}: unknown key {where}{key}; {hint}")


def _one_of(name: str, value: object, allowed: tuple[str, ...], needed: bool = False) -> None:
    if value not in allowed and (needed or value is not None):
        raise LicenceError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _either(*values: bool | None) -> bool | None:
    return True if True in values else (None if None in values else False)


def answered(use: Use, fact: str, value: Any) -> Use:
    """The use with one more fact known; `fact` is named as in questions, such as "users.2024-06"."""
    table, _, key = fact.partition(".")
    if key:
        numbers: dict[str, Any] = {table: {**getattr(use, table), key: value}}
        return replace(use, **numbers)
    return replace(use, **{_FIELD_OF.get(fact, fact): value})


_FIELD_OF = {
    "modifies": "modify",
    "shares_weights": "share_weights",
    "shares_product": "share_product",
    "serves": "serve",
    "trains_on_outputs": "train_on_outputs",
    "removes_safety": "remove_safety",
    "company": "actor",
    "eu": "domicile",
}


def askable(fact: str, use: Use) -> Iterator[str]:
    """The facts to ask a person for, where a condition names one that follows from others.

    >>> list(askable("copies_leave", Use(share_weights=False)))
    ['shares_product']
    """
    parts = {
        "copies_leave": ("shares_weights", "shares_product"),
        "shares": ("shares_weights", "shares_product", "serves"),
        "derived": ("modifies",),
        "eu": ("domicile",),
    }
    known = use.facts()
    yield from (each for each in parts.get(fact, (fact,)) if known.get(each) is None)
