"""What a short label says: tags, SPDX expressions, joined lists, links, and the names of checkpoints."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vitral.provenance.component import Evidence, Kind
from vitral.provenance.terms import catalogue

__all__ = ["Checkpoint", "checkpoint", "of_label", "of_link", "of_name"]

_NOTHING = {"other", "unknown", "unlicensed", "proprietary", "custom", "none", "n/a"}
_FAMILIES = {"cc", "bsd", "gpl", "lgpl", "agpl", "openrail", "rail", "openrail-m", "llama", "creativeml"}
_MODIFIED_MIT = {"modified-mit", "modified mit", "modified_mit"}
_LONGEST = 300


@cache
def _by_label() -> dict[str, str]:
    found = {}
    for entry in catalogue().values():
        if entry.kind != "policy":
            for label in (entry.id, entry.spdx, entry.name, *entry.tags):
                found[label.lower()] = entry.id
    return found


def of_label(label: str, where: str, model: str = "", kind: Kind = "declared") -> Iterator[Evidence]:
    """What a licence label says: one evidence for each licence that must be kept to.

    A comma or AND joins licences that all apply; OR gives a choice. `model` helps where one label stands
    for several licences, as `modified-mit` does.

    >>> [item.licences for item in of_label("apache-2.0,mit", "card")]
    [('apache-2.0',), ('mit',)]
    >>> [item.licences for item in of_label("MIT OR Apache-2.0", "card")]
    [('apache-2.0', 'mit')]
    >>> [item.doubtful for item in of_label("other", "card")]
    [True]
    """
    said = " ".join(label.split())[:_LONGEST]
    if not said:
        return
    parts = [part.strip(" ()") for part in re.split(r",|;|\bAND\b", said) if part.strip(" ()")]
    joined = len(parts) > 1 and "," in said
    for part in parts:
        note, note_pt = (
            (
                f"“{said}” joins two licences with a comma, as converters do; whether it means and or or is not said, so both are kept to",
                f"“{said}” junta duas licenças com vírgula, como fazem os conversores; não diz se é e ou ou, então ambas são cumpridas",
            )
            if joined and part == parts[0]
            else ("", "")
        )
        ids = [_one(choice.strip(" ()"), model) for choice in re.split(r"\bOR\b|\|", part)]
        if all(ids):
            yield Evidence(kind, where, part, tuple(sorted({id for id in ids if id})), None, note, note_pt)
        else:
            yield _unclear(part, where, kind)


def _one(label: str, model: str) -> str | None:
    plain = re.sub(r"\s+WITH\s+.*", "", label).strip().lower()
    if plain in _MODIFIED_MIT:
        known = checkpoint(model)
        return next((id for id in known.licences if id.endswith("-mmit")), None) if known else None
    return None if plain in _FAMILIES or plain in _NOTHING else _by_label().get(plain)


def _unclear(part: str, where: str, kind: Kind) -> Evidence:
    plain = part.lower()
    if plain in _NOTHING:
        why = (f"“{part}” names no licence: read its text", f"“{part}” não nomeia licença alguma: leia o texto")
    elif plain in _MODIFIED_MIT:
        why = (
            f"“{part}” stands for at least three different licences: one asks large products to show a name, one grants nothing above a revenue",
            f"“{part}” designa ao menos três licenças diferentes: uma exige que produtos grandes exibam um nome, outra nada concede acima de certa receita",
        )
    elif plain in _FAMILIES:
        why = (
            f"“{part}” names a family of licences, not one of them",
            f"“{part}” nomeia uma família de licenças, não uma delas",
        )
    else:
        why = (f"“{part}” is no licence that the catalogue knows", f"“{part}” não é licença que o catálogo conheça")
    return Evidence(kind, where, part, (), None, *why, doubtful=True)


def of_link(link: str, where: str) -> Iterator[Evidence]:
    """What the address of a licence says, if it is a known one; a link to a file of the model says nothing."""
    plain = link.strip().lower().replace("www.", "")[:_LONGEST]
    for entry in catalogue().values():
        if any(part in plain for part in entry.links):
            yield Evidence("linked", where, link[:_LONGEST], (entry.id,))
            return


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A known checkpoint: all its licences apply together. owners: the maker's own accounts."""

    pattern: str
    licences: tuple[str, ...]
    owners: tuple[str, ...]
    multimodal: bool | None


@cache
def _checkpoints() -> tuple[Checkpoint, ...]:
    raw = tomllib.loads(resources.files("vitral.provenance").joinpath("checkpoints.toml").read_text("utf-8"))
    return tuple(
        Checkpoint(e["pattern"], tuple(e["licences"]), tuple(e["owners"]), e.get("multimodal"))
        for e in raw["checkpoint"]
    )


def checkpoint(name: str) -> Checkpoint | None:
    """The known checkpoint that a name begins with or contains.

    >>> checkpoint("mistralai/Ministral-3-8B-Instruct-2512").licences
    ('apache-2.0',)
    >>> checkpoint("mistralai/Ministral-8B-Instruct-2410").licences
    ('mrl',)
    """
    plain = re.sub(r"[ ]+", "-", name.strip().lower())[:_LONGEST]
    return next((known for known in _checkpoints() if re.search(known.pattern, plain)), None)


def of_name(name: str) -> Iterator[Evidence]:
    """What a checkpoint's name says: from its maker's own repository, what the card there said; otherwise weak."""
    known = checkpoint(name)
    if known is None:
        return
    owner, _, rest = name.strip().lower().partition("/")
    own = bool(rest) and owner in known.owners
    kind: Kind = "catalogue" if own else "name"
    where = f"the maker's card, read on 2026-11-23 ({name})" if own else f"the name {name}"
    for id in known.licences:
        yield Evidence(kind, where, name, (id,))
