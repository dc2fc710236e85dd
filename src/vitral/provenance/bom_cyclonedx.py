"""CycloneDX 1.6 and 1.7 with a model card, as plain JSON values.

The library `cyclonedx-python-lib` knows no `modelCard` and drops one that it reads, so nothing of it is used here; its
schemas check the result in the tests. Source: the JSON schemas of CycloneDX 1.6 and 1.7. What the format has no place
for stands in `properties` under `vitral:`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vitral.provenance.facts import Facts, Related
from vitral.provenance.libraries import Library
from vitral.provenance.spdx_id import spdx_id

__all__ = ["cyclonedx"]

_SPACE = uuid.UUID("6e1b7a0e-3a4f-5a52-9d3f-1d7d4c1f0b77")  # ours, under which documents are numbered


def cyclonedx(facts: Facts, version: str, made: datetime) -> dict[str, Any]:
    """The document for specification 1.6 or 1.7."""
    model = _model(facts)
    parts = [
        *(_file(name, digest.sha256) for name, digest in facts.files.items()),
        *(_related(one) for one in facts.related),
        *_tokenizer(facts),
        _engine(facts),
        *(_library(one) for one in facts.libraries),
    ]
    refs = [part["bom-ref"] for part in parts]
    libraries = [ref for ref in refs if ref.startswith("library:")]
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{version}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": version,
        "version": 1,
        "metadata": {
            "timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "vitral", "version": facts.engine}]},
            "component": model,
        },
        "components": parts,
        "dependencies": [
            {"ref": "model", "dependsOn": [ref for ref in refs if ref not in libraries]},
            {"ref": "engine", "dependsOn": libraries},
        ],
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    return document | {"serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, text)}"}


def _model(facts: Facts) -> dict[str, Any]:
    datasets = [{"ref": f"dataset:{one.name}"} for one in facts.related if one.kind == "dataset"]
    card: dict[str, Any] = {
        "task": facts.task,
        "architectureFamily": "llama",
        "modelArchitecture": str(facts.spec["type"]),
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if datasets:
        card["datasets"] = datasets
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.name,
        "modelCard": {"modelParameters": card},
        "properties": _properties(facts),
    }
    if len(facts.files) == 1:
        [only] = facts.files.values()
        found["hashes"] = [_hash(only.sha256)]
    if facts.version:
        found["version"] = facts.version
    if facts.author:
        found["supplier"] = {"name": facts.author}
    if facts.licences:
        found["licenses"] = [_licence(tag) for tag in facts.licences]
    if facts.licence_texts:
        texts = [{"license": {"name": name, "text": {"content": text}}} for name, text in facts.licence_texts.items()]
        found["evidence"] = {"licenses": texts}
    if facts.url:
        found["externalReferences"] = [{"type": "distribution", "url": facts.url}]
    ancestors = [_related(one, inside=True) for one in facts.related if one.kind == "base"]
    if ancestors or facts.steps:
        found["pedigree"] = {
            **({"ancestors": ancestors} if ancestors else {}),
            **({"notes": "; ".join(f"{s.operation} by {s.tool}" for s in facts.steps)} if facts.steps else {}),
        }
    return found


def _properties(facts: Facts) -> list[dict[str, str]]:
    values: dict[str, Any] = {
        "vitral:layout": facts.layout,
        "vitral:weights:sha256": facts.weights,
        "vitral:parameters": facts.parameters,
        "vitral:chat-template:sha256": facts.template,
        "vitral:vocabulary:sha256": facts.vocabulary,
        "vitral:languages": ",".join(facts.languages) or None,
        **{f"vitral:spec:{name}": value for name, value in facts.spec.items()},
    }
    return [{"name": name, "value": str(value)} for name, value in values.items() if value is not None]


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(sha256)]}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _licence(tag: str) -> dict[str, Any]:
    known = spdx_id(tag)
    return {"license": {"id": known} if known else {"name": tag}}


def _related(one: Related, inside: bool = False) -> dict[str, Any]:
    kind = "data" if one.kind == "dataset" else "machine-learning-model"
    ref = f"{one.kind}:{one.name}"
    found: dict[str, Any] = {"type": kind, "bom-ref": f"ancestor:{one.name}" if inside else ref, "name": one.name}
    if one.licence:
        found["licenses"] = [_licence(tag) for tag in one.licence.split(" AND ")]
    if one.sha256:
        found["hashes"] = [_hash(one.sha256)]
    if one.weights:
        found["properties"] = [{"name": "vitral:weights:sha256", "value": one.weights}]
    if one.url:
        reference = {"type": "distribution", "url": one.url}
        found["externalReferences"] = [reference]
    return found


def _tokenizer(facts: Facts) -> list[dict[str, Any]]:
    parts: Mapping[str, str | None] = {"tokenizer": facts.vocabulary, "chat-template": facts.template}
    return [
        {"type": "data", "bom-ref": name, "name": f"{facts.name} {name}", "hashes": [_hash(digest)]}
        for name, digest in parts.items()
        if digest is not None
    ]


def _engine(facts: Facts) -> dict[str, Any]:
    licence = {"license": {"id": "Apache-2.0"}}
    return {
        "type": "application",
        "bom-ref": "engine",
        "name": "vitral",
        "version": facts.engine,
        "licenses": [licence],
    }


def _library(one: Library) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"library:{one.name}",
        "name": one.name,
        "version": one.version,
        "purl": f"pkg:pypi/{one.name}@{one.version}",
    }
    if one.licence and not one.label and one.basis == "declared":
        found["licenses"] = [{"expression": one.licence, "acknowledgement": one.basis}]
    elif one.licence or one.label:
        label = [{"license": {"name": one.label, "acknowledgement": "declared"}}] if one.label else []
        ids = [{"license": {"id": one.licence, "acknowledgement": one.basis}}] if one.licence else []
        found["licenses"] = label + ids
    if one.texts:
        found["evidence"] = {"licenses": [{"license": {"id": id}} for id in one.texts]}
    if one.note:
        found["properties"] = [{"name": "vitral:licence:found", "value": one.note}]
    return found
