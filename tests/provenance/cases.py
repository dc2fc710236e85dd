"""The twelve cases of the research note on licences, as facts: each states verdict, clause and notices."""

from __future__ import annotations

from vitral.provenance.component import Component, Dossier, Evidence
from vitral.provenance.use import Role, Use

QUIET = Use(
    actor="company",
    domicile="US",
    commercial=True,
    production=True,
    purpose="product",
    fields=(),
    modify=False,
    share_weights=False,
    share_product=False,
    serve=False,
    train_on_outputs=False,
    remove_safety=False,
    text_only=False,
    competes=False,
    users={"never_above": 1000},
    revenue={"year": 100_000},
)
"""A small company's use that keeps everything to itself; each case changes what it says."""


def part(role: Role, name: str, *licences: str, multimodal: bool = False, generated_by: str = "") -> Component:
    """A part whose licences are stated."""
    evidence = tuple(Evidence("stated", "the case", name, (id,)) for id in licences)
    return Component(role, name, evidence, multimodal, generated_by=generated_by)


def of(*parts: Component, model: str = "the-model") -> Dossier:
    """A dossier of parts."""
    return Dossier(model, parts)
