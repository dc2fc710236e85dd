"""Reading somebody's bill of materials, and holding it against a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitral.errors import FormatError
from vitral.formats.json_text import read_object
from vitral.provenance.facts import Facts
from vitral.provenance.spdx_id import expression
from vitral.verdict import Verdict

__all__ = ["Bill", "check_bom", "read_bom"]

_LARGEST = 64 << 20
_MOST_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Bill:
    """What a bill says that can be held against files: names, licences, SHA-256 by name of file, related models and data."""

    format: str
    name: str
    licences: frozenset[str]
    files: Mapping[str, str]
    digests: frozenset[str]
    related: frozenset[str]


def read_bom(path: Path) -> Bill:
    """A bill in CycloneDX JSON (1.5 and later) or SPDX 3 JSON-LD; FormatError for anything else."""
    document = read_object(path, _LARGEST)
    try:
        if document.get("bomFormat") == "CycloneDX":
            return _cyclonedx(document)
        if isinstance(document.get("@graph"), list):
            return _spdx(document["@graph"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is a bill of materials with a part that cannot be read ({error})") from None
    raise FormatError(f"{path} is no bill of materials that is read; allowed: CycloneDX JSON, SPDX 3 JSON-LD")


def check_bom(facts: Facts, bill: Bill) -> Verdict:
    """Whether a bill tells of these files: False where a digest differs, None where it says less or something else."""
    wrong, unsure = [], []
    ours = {digest.sha256 for digest in facts.files.values()} | {facts.weights}
    for name, sha256 in sorted(bill.files.items()):
        if name not in facts.files:
            wrong.append(f"the bill lists {name}, which is not there")
        elif facts.files[name].sha256 != sha256:
            wrong.append(f"{name} has another digest than the bill says")
    if not bill.files and bill.digests and not bill.digests & ours:
        wrong.append("no digest of the bill is one of this model's")
    if bill.files:
        unsure += [f"{name} is not in the bill" for name in sorted(facts.files.keys() - bill.files.keys())]
    if not bill.digests:
        unsure.append("the bill has no digests: it could tell of any model")
    declared = {expression(tag) for tag in facts.licences}
    if declared != bill.licences:
        unsure.append(f"licences: the files declare {_listed(declared)}, the bill {_listed(bill.licences)}")
    parents = {one.name for one in facts.related}
    missing = sorted(parents - bill.related)
    if missing:
        unsure.append(f"the bill does not name {', '.join(missing)}, which the files do")
    if bill.name != facts.name:
        unsure.append(f"the bill is of {bill.name!r:.80}, the files are of {facts.name!r:.80}")
    reasons = wrong + unsure or ["the bill tells of this model, file by file"]
    return Verdict(False if wrong else None if unsure else True, tuple(reasons), {"format": bill.format})


def _listed(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _cyclonedx(document: Mapping[str, Any]) -> Bill:
    model = document.get("metadata", {}).get("component") or {}
    every = [model, *_components(document.get("components", []), 0)]
    if model.get("type") != "machine-learning-model":
        model = next((one for one in every if one.get("type") == "machine-learning-model"), model)
    ancestors = model.get("pedigree", {}).get("ancestors", [])
    related = [one for one in [*every, *ancestors] if one is not model]
    digests = {h["content"].lower() for one in (model, *every) for h in one.get("hashes", []) if h["alg"] == "SHA-256"}
    return Bill(
        f"CycloneDX {document.get('specVersion')}",
        str(model.get("name", "")),
        frozenset(_licence(one) for one in model.get("licenses", [])),
        {
            str(one["name"]): h["content"].lower()
            for one in every
            if one.get("type") == "file"
            for h in one.get("hashes", [])
            if h["alg"] == "SHA-256"
        },
        frozenset(digests),
        frozenset(str(one["name"]) for one in related if one.get("type") in ("machine-learning-model", "data")),
    )


def _components(components: list[dict[str, Any]], depth: int) -> Iterator[dict[str, Any]]:
    for one in components:
        yield one
        if depth < _MOST_DEPTH:
            yield from _components(one.get("components", []), depth + 1)


def _licence(choice: Mapping[str, Any]) -> str:
    if "expression" in choice:
        return str(choice["expression"])
    licence = choice["license"]
    return expression(str(licence.get("id") or licence.get("name")))


def _spdx(graph: list[dict[str, Any]]) -> Bill:
    elements = {str(one.get("spdxId") or one.get("@id")): one for one in graph}
    relations = [one for one in graph if one.get("type") == "Relationship"]
    document: dict[str, Any] = next((one for one in graph if one.get("type") == "SpdxDocument"), {})
    roots = [elements[ref] for ref in document.get("rootElement", []) if ref in elements]
    models = [one for one in [*roots, *graph] if one.get("type") == "ai_AIPackage"]
    model = models[0] if models else {}
    licences = {
        str(elements[ref].get("simplelicensing_licenseExpression"))
        for relation in relations
        if relation.get("relationshipType") == "hasDeclaredLicense" and relation.get("from") == model.get("spdxId")
        for ref in relation["to"]
        if ref in elements
    }
    inside = {
        ref
        for relation in relations
        if relation.get("relationshipType") == "contains" and relation.get("from") == model.get("spdxId")
        for ref in relation["to"]
    }
    parts = ("tokenizer", "chat-template")
    files = {
        str(one["name"]): _sha256(one)
        for one in graph
        if one.get("type") == "software_File" and one.get("spdxId") in inside and not one["name"].endswith(parts)
    }
    return Bill(
        "SPDX 3",
        str(model.get("name", "")),
        frozenset(licences),
        {name: sha256 for name, sha256 in files.items() if sha256},
        frozenset(filter(None, map(_sha256, graph))),
        frozenset(
            str(one["name"])
            for one in graph
            if one.get("type") in ("ai_AIPackage", "dataset_DatasetPackage") and one is not model
        ),
    )


def _sha256(element: Mapping[str, Any]) -> str:
    for one in element.get("verifiedUsing", []):
        if isinstance(one, dict) and one.get("algorithm") == "sha256":
            return str(one["hashValue"]).lower()
    return ""
