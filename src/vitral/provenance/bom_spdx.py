"""SPDX 3.0.1 with the AI profile, as JSON-LD values.

Source: the model of SPDX 3.0.1 (`ai_AIPackage`, `dataset_DatasetPackage`, `simplelicensing_LicenseExpression`). The AI
profile demands a supplier, a version, a place and a time of release of every model. Where the files do not say them:
an agent called NOASSERTION, the digest of the weights, NOASSERTION, and the time of the document.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from vitral.provenance.facts import Facts, Related
from vitral.provenance.libraries import Library
from vitral.provenance.spdx_id import expression

__all__ = ["spdx"]

_CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_INFO = "_:made"


def spdx(facts: Facts, made: datetime) -> dict[str, Any]:
    """The document."""
    return _Writer(facts, made).document()


class _Writer:
    """Gathers elements and the relationships between them."""

    def __init__(self, facts: Facts, made: datetime) -> None:
        self.facts = facts
        self.time = made.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.elements: list[dict[str, Any]] = []

    def document(self) -> dict[str, Any]:
        facts = self.facts
        vitral = self.add("SoftwareAgent", "agent:vitral", name=f"vitral {facts.engine}")
        supplier = self.add("Agent", "agent:supplier", name=facts.author or "NOASSERTION")
        model = self.model(facts, supplier)
        files = [
            self.add("software_File", f"file:{name}", name=name, verifiedUsing=[_hash(digest.sha256)])
            for name, digest in facts.files.items()
        ]
        self.relate(model, "contains", files)
        for part, digest in (("tokenizer", facts.vocabulary), ("chat-template", facts.template)):
            if digest is not None:
                ref = self.add("software_File", part, name=f"{facts.name} {part}", verifiedUsing=[_hash(digest)])
                self.relate(model, "contains", [ref])
        self.licences(model, facts.licences)
        for one in facts.related:
            self.related(model, one)
        engine = self.package("engine", Library("vitral", facts.engine, "Apache-2.0"))
        self.relate(model, "dependsOn", [engine])
        self.relate(engine, "dependsOn", [self.package(f"library:{lib.name}", lib) for lib in facts.libraries])
        info = {
            "type": "CreationInfo",
            "@id": _INFO,
            "specVersion": "3.0.1",
            "created": self.time,
            "createdBy": [vitral],
        }
        ids = sorted(element["spdxId"] for element in self.elements)
        self.add(
            "SpdxDocument",
            "document",
            name=f"Bill of materials of {facts.name}",
            rootElement=[model],
            element=ids,
            profileConformance=["ai", "core", "simpleLicensing", "software"],
        )
        return {"@context": _CONTEXT, "@graph": [info, *sorted(self.elements, key=lambda one: one["spdxId"])]}

    def add(self, type: str, ref: str, **values: Any) -> str:
        spdx_id = f"urn:vitral:{self.facts.weights}:{re.sub(r'[^A-Za-z0-9._:-]', '_', ref)}"
        if all(element["spdxId"] != spdx_id for element in self.elements):
            self.elements.append({"type": type, "spdxId": spdx_id, "creationInfo": _INFO, **values})
        return spdx_id

    def relate(self, start: str, kind: str, to: list[str]) -> None:
        if to:
            ref = f"relationship:{start.rpartition(self.facts.weights + ':')[2]}:{kind}:{len(self.elements)}"
            self.add("Relationship", ref, relationshipType=kind, to=to, **{"from": start})

    def licences(self, element: str, tags: tuple[str, ...]) -> None:
        for tag in tags:
            self.licence(element, f"licence:{tag}", expression(tag), "hasDeclaredLicense")

    def licence(self, element: str, ref: str, expression: str, kind: str) -> None:
        text = self.add("simplelicensing_LicenseExpression", ref, simplelicensing_licenseExpression=expression)
        self.relate(element, kind, [text])

    def package(self, ref: str, one: Library) -> str:
        more = {"comment": f"licence: {one.note}"} if one.note else {}
        package = self.add("software_Package", ref, name=one.name, software_packageVersion=one.version, **more)
        if one.label:
            self.licences(package, (one.label,))
        if one.licence:
            kind = "hasConcludedLicense" if one.basis == "concluded" else "hasDeclaredLicense"
            self.licence(package, f"licence:{one.licence}", one.licence, kind)
        return package

    def model(self, facts: Facts, supplier: str) -> str:
        sizes = [
            {"type": "DictionaryEntry", "key": name, "value": str(value)}
            for name, value in (*facts.spec.items(), ("parameters", facts.parameters))
        ]
        return self.add(
            "ai_AIPackage",
            "model",
            name=facts.name,
            suppliedBy=supplier,
            releaseTime=self.time,
            software_packageVersion=facts.version or f"weights-{facts.weights[:16]}",
            software_downloadLocation=facts.url or "NOASSERTION",
            software_primaryPurpose="model",
            verifiedUsing=[{**_hash(facts.weights), "comment": "over the tensors, the same in every container"}],
            ai_typeOfModel=[str(facts.spec["type"]), "llama"],
            ai_domain=[facts.task],
            ai_hyperparameter=sizes,
            **({"ai_informationAboutTraining": _steps(facts)} if facts.steps else {}),
        )

    def related(self, model: str, one: Related) -> None:
        ref = f"{one.kind}:{one.name}"
        more: dict[str, Any] = {"name": one.name}
        if one.url is not None and "://" in one.url:
            more["software_downloadLocation"] = one.url
        if one.sha256:
            more["verifiedUsing"] = [_hash(one.sha256)]
        if one.kind == "dataset":
            found = self.add("dataset_DatasetPackage", ref, dataset_datasetType=["text"], **more)
            self.relate(model, "trainedOn", [found])
        else:
            more |= {"verifiedUsing": [_hash(one.weights)]} if one.weights else {}
            found = self.add("ai_AIPackage", ref, software_primaryPurpose="model", **more)
            if one.kind == "base":
                self.relate(found, "ancestorOf", [model])
            else:
                self.relate(model, "contains", [found])
        if one.licence:
            self.licences(found, (one.licence,))


def _steps(facts: Facts) -> str:
    return "; ".join(
        f"{step.operation} by {step.tool} from {', '.join(b['name'] for b in step.base)}" for step in facts.steps
    )


def _hash(sha256: str) -> dict[str, str]:
    return {"type": "Hash", "algorithm": "sha256", "hashValue": sha256}
