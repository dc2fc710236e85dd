"""Bills of materials: valid against the schemas, the same bytes for the same files, read back and held against them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.formats import tiny
from tests.provenance.models import folder_model
from tests.provenance.spdx_schema import spdx_schema
from vitral.errors import FormatError, SettingsError
from vitral.provenance.bom import FORMATS, bom, bom_text, made_at
from vitral.provenance.bom_read import check_bom, read_bom
from vitral.provenance.facts import Facts, gather
from vitral.provenance.libraries import Library

MADE = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_model(tmp_path_factory.mktemp("bom") / "model")


@pytest.fixture(scope="module")
def facts(model: Path) -> Facts:
    return gather(model)


@pytest.mark.parametrize("version", ["1.6", "1.7"])
def test_cyclonedx_is_valid_against_the_official_schema(version: str, facts: Facts, tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(getattr(SchemaVersion, f"V{version.replace('.', '_')}"))
    for one in (facts, gather(tiny.gguf()[0].write(tmp_path))):
        errors = validator.validate_str(bom_text(bom(one, f"cyclonedx-{version}", MADE)))
        assert errors is None, errors


def test_spdx_is_valid_against_the_official_schema(facts: Facts, tmp_path: Path) -> None:
    validator = Draft202012Validator(spdx_schema())
    for one in (facts, gather(tiny.gguf()[0].write(tmp_path))):
        document = json.loads(bom_text(bom(one, "spdx-3.0.1", MADE)))
        assert [error.message[:200] for error in validator.iter_errors(document)] == []
        package = next(e for e in document["@graph"] if e["type"] == "ai_AIPackage")
        package["releaseTime"] = "yesterday"
        assert list(validator.iter_errors(document)), "the schema sees a wrong date"


def test_spdx_is_valid_against_the_bindings_made_from_its_model(facts: Facts) -> None:
    from spdx_python_model.bindings import v3_0_1 as spdx

    document = bom(facts, "spdx-3.0.1", MADE)
    objects = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(StringIO(json.dumps(document)), objects)
    assert not objects.link() or all("spdx.org" in str(ref) for ref in objects.missing_ids)
    [package] = [p for p in objects.foreach_type(spdx.ai_AIPackage) if p._id.endswith(":model")]
    assert package.name == facts.name


def test_spdx_has_what_the_ai_profile_demands(facts: Facts) -> None:
    graph = bom(facts, "spdx-3.0.1", MADE)["@graph"]
    [package] = [e for e in graph if e["type"] == "ai_AIPackage" and e["spdxId"].endswith(":model")]
    for field in (
        "suppliedBy",
        "software_downloadLocation",
        "software_packageVersion",
        "software_primaryPurpose",
        "releaseTime",
    ):
        assert package[field]
    ids = {e.get("spdxId") or e["@id"] for e in graph}
    for relation in (e for e in graph if e["type"] == "Relationship"):
        assert relation["from"] in ids
        assert relation["to"]
        assert set(relation["to"]) <= ids
    kinds = {e["relationshipType"] for e in graph if e["type"] == "Relationship"}
    assert {"contains", "ancestorOf", "trainedOn", "hasDeclaredLicense", "dependsOn"} <= kinds
    licences = {
        e["simplelicensing_licenseExpression"] for e in graph if e["type"] == "simplelicensing_LicenseExpression"
    }
    assert "LicenseRef-mrl" in licences


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_files_give_the_same_bytes(format: str, model: Path, facts: Facts) -> None:
    again = gather(model)
    assert bom_text(bom(facts, format, made_at(model))) == bom_text(bom(again, format, made_at(model)))
    assert bom_text(bom(facts, format, MADE)).endswith("}\n")


def test_everything_that_went_in_is_listed(facts: Facts) -> None:
    document = bom(facts, "cyclonedx-1.7", MADE)
    component: dict[str, Any] = document["metadata"]["component"]
    assert component["licenses"] == [{"license": {"name": "mrl"}}]
    assert component["modelCard"]["modelParameters"]["datasets"] == [
        {"ref": "dataset:other/books"},
        {"ref": "dataset:someone/chats"},
    ]
    assert [one["name"] for one in component["pedigree"]["ancestors"]] == ["someone/base-7b"]
    assert component["evidence"]["licenses"][0]["license"]["text"]["content"] == "You may look at it.\n"
    refs = {one["bom-ref"] for one in document["components"]}
    assert {"tokenizer", "chat-template", "engine", "library:numpy", "file:model.safetensors"} <= refs
    assert "vitral:weights:sha256" in {one["name"] for one in component["properties"]}


def test_a_library_has_its_licence_by_whoever_says_so(facts: Facts) -> None:
    """The words of a classifier as declared, the id that a text shows as concluded, and how it was found."""
    some = (
        Library("a", "1", "MIT", note="declared as License-Expression"),
        Library("b", "1", "BSD-3-Clause", "concluded", "BSD License", ("BSD-3-Clause",), "from its text"),
        Library("c", "1", None, "declared", "Apache Software License", (), "by classifier"),
    )
    known = replace(facts, libraries=some)
    parts = {part["bom-ref"]: part for part in bom(known, "cyclonedx-1.7", MADE)["components"]}
    assert parts["library:a"]["licenses"] == [{"expression": "MIT", "acknowledgement": "declared"}]
    assert parts["library:b"]["licenses"] == [
        {"license": {"name": "BSD License", "acknowledgement": "declared"}},
        {"license": {"id": "BSD-3-Clause", "acknowledgement": "concluded"}},
    ]
    assert parts["library:b"]["evidence"] == {"licenses": [{"license": {"id": "BSD-3-Clause"}}]}
    assert parts["library:c"]["properties"] == [{"name": "vitral:licence:found", "value": "by classifier"}]
    graph = {
        e.get("spdxId", "").rpartition(f"{facts.weights}:")[2]: e for e in bom(known, "spdx-3.0.1", MADE)["@graph"]
    }
    said = {
        (
            e["from"].rpartition(":")[2],
            e["relationshipType"],
            graph[to.partition(f"{facts.weights}:")[2]]["simplelicensing_licenseExpression"],
        )
        for e in graph.values()
        if e["type"] == "Relationship" and "library" in e["from"]
        for to in e["to"]
    }
    assert said == {
        ("a", "hasDeclaredLicense", "MIT"),
        ("b", "hasDeclaredLicense", "LicenseRef-BSD-License"),
        ("b", "hasConcludedLicense", "BSD-3-Clause"),
        ("c", "hasDeclaredLicense", "LicenseRef-Apache-Software-License"),
    }
    assert graph["library:b"]["comment"] == "licence: from its text"


@pytest.mark.parametrize("format", FORMATS)
def test_a_bill_of_ours_is_read_and_fits(format: str, facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_text(bom_text(bom(facts, format, MADE)))
    verdict = check_bom(facts, read_bom(path))
    assert verdict.passed is True, verdict.reasons


@pytest.mark.parametrize("format", FORMATS)
def test_a_bill_that_tells_something_else_is_told(format: str, facts: Facts, tmp_path: Path) -> None:
    document = bom_text(bom(facts, format, MADE))
    path = tmp_path / "bom.json"
    path.write_text(document.replace(facts.files["config.json"].sha256, "0" * 64))
    assert check_bom(facts, read_bom(path)).reasons[0] == "config.json has another digest than the bill says"
    path.write_text(
        document.replace("someone/base-7b", "someone/else").replace('"mrl"', '"mit"').replace("LicenseRef-mrl", "MIT")
    )
    verdict = check_bom(facts, read_bom(path))
    assert verdict.passed is None
    assert any("LicenseRef-mrl" in reason and "MIT" in reason for reason in verdict.reasons)
    assert any("someone/base-7b" in reason for reason in verdict.reasons)


def test_a_bill_without_digests_proves_nothing(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_text(
        json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "metadata": {"component": {"name": facts.name}}})
    )
    assert "could tell of any model" in " ".join(check_bom(facts, read_bom(path)).reasons)


def test_what_is_no_bill_is_refused(facts: Facts, tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"spdxVersion": "SPDX-2.3"}')
    with pytest.raises(FormatError, match="CycloneDX JSON, SPDX 3 JSON-LD"):
        read_bom(tmp_path / "x")
    with pytest.raises(SettingsError, match=r"cyclonedx-1\.7"):
        bom(facts, "spdx-2.3", MADE)
