"""What is known of a data set by its name: the licence that its card names, and whose model wrote it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vitral.provenance.component import Evidence, Kind
from vitral.provenance.terms import Sure

__all__ = ["DataSet", "data_set", "of_data_set"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A known data set. writer: the model that wrote it, "" for people; written_by: that model's terms."""

    name: str
    licences: tuple[str, ...]
    writer: str
    written_by: str
    source: str
    read: str
    sure: Sure
    note: str
    note_pt: str


@cache
def _known() -> dict[str, DataSet]:
    raw = tomllib.loads(resources.files("vitral.provenance").joinpath("datasets.toml").read_text("utf-8"))
    found = [
        DataSet(
            *(entry["name"], tuple(entry["licences"]), entry.get("writer", ""), entry.get("written_by", "")),
            *(
                entry["source"],
                entry["read"].isoformat(),
                entry["sure"],
                entry.get("note", ""),
                entry.get("note_pt", ""),
            ),
        )
        for entry in raw["dataset"]
    ]
    return {each.name.lower(): each for each in found}


def data_set(name: str) -> DataSet | None:
    """The known data set of this name, whoever's copy it is.

    >>> data_set("someone/ultrachat_200k").licences
    ('mit',)
    """
    plain = name.strip().lower()
    last = plain.rsplit("/", 1)[-1]
    copies = (each for key, each in _known().items() if key.rsplit("/", 1)[-1] == last)
    return _known().get(plain) or next(copies, None)


def of_data_set(name: str) -> Iterator[Evidence]:
    """What a data set's name says: from its maker's own repository, what the card there said; otherwise weak."""
    known = data_set(name)
    if known is None:
        return
    own = known.name.lower() == name.strip().lower()
    kind: Kind = "catalogue" if own else "name"
    where = f"what is known of {known.name}: {known.source}, read on {known.read}" if own else f"the name {name}"
    quoted = known.sure != "primary"
    note, note_pt = known.note, known.note_pt
    if own and quoted and not note:
        note = "its own card was not read, only what another says of it: look at the card"
        note_pt = "o próprio cartão não foi lido, só o que outro diz dele: veja o cartão"
    for id in known.licences:
        yield Evidence(
            kind, where, known.name, (id,), None, *((note, note_pt) if own else ("", "")), own and bool(note)
        )
