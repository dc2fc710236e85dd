"""What a model is made of, and what says under which licence each part stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitral.provenance.use import Role

__all__ = ["INSIDE", "Component", "Dossier", "Evidence", "Kind"]

Kind = Literal["stated", "detected", "declared", "linked", "catalogue", "name"]
"""stated: by the user; detected: a licence text; declared: a label; linked: a label's link; catalogue: what the maker's own card said; name: a name alone."""

INSIDE: tuple[Role, ...] = ("model", "base", "adapter", "merged")
"""The roles of parts whose weights are in the model; the others only taught it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that says which licence a part stands under.

    licences: alternatives, any one of which may be chosen; empty where it says something that is no known
    licence. where: the file and key. said: the words. score: how much of a licence's text was found, 0 to 1.
    note: what is odd about it; doubtful: True where a person should look.
    """

    kind: Kind
    where: str
    said: str
    licences: tuple[str, ...] = ()
    score: float | None = None
    note: str = ""
    note_pt: str = ""
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a model: itself, its base, an adapter, a merged parent, a data set, or a model that wrote data.

    multimodal: None where nothing says. generated_by: "you", "other" or "".
    """

    role: Role
    name: str
    evidence: tuple[Evidence, ...] = ()
    multimodal: bool | None = None
    safety_removed: bool = False
    generated_by: str = ""

    @property
    def claims(self) -> tuple[tuple[str, ...], ...]:
        """Every different licence, or choice of licences, that some evidence names."""
        return tuple(sorted({item.licences for item in self.evidence if item.licences}))

    @property
    def licences(self) -> tuple[str, ...]:
        """Every licence that some evidence names."""
        return tuple(sorted({id for claim in self.claims for id in claim}))

    @property
    def disagrees(self) -> bool:
        """Whether the evidence names different licences for this one part.

        Two labels that a converter joined with a comma agree: either way both are kept to. So do two texts that lie
        side by side. A card and a header that say different things do not.
        """
        found: dict[tuple[str, str], set[tuple[str, ...]]] = {}
        for item in self.evidence:
            if item.licences:
                place = item.where if item.kind == "declared" else ""
                found.setdefault((item.kind, place), set()).add(item.licences)
        sets = list(found.values())
        return any(one != other for one in sets for other in sets)


@dataclass(frozen=True, slots=True)
class Dossier:
    """Everything that was found about a model before any judgement."""

    model: str
    components: tuple[Component, ...]
    read: tuple[str, ...] = ()
