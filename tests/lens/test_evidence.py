from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.evidence import IN_PREDICATE, by_commands, prove, tampered
from tests.conftest import ROOT
from tests.formats.test_adapters import random_parts, write_peft
from tests.parity.families import FAMILIES, random_weights
from vitral.cli.main import _code
from vitral.engine.request import SamplingParams
from vitral.errors import FormatError, RequestError
from vitral.lens.analysis import Analysis, LawView, analyse
from vitral.lens.evidence import first_difference, make, read
from vitral.serve.proof import Opened, judge_on, opened, record_here

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FULL = Analysis(lens=2, attention=2)


@pytest.fixture(scope="module")
def tiny(data_dir: Path) -> str:
    return str(data_dir / "model-stories260k" / "stories260K.bin")


@pytest.fixture(scope="module")
def on(tiny: str) -> Iterator[Opened]:
    with opened(tiny, "f16", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def record(on: Opened) -> dict[str, Any]:
    prompt = on.loaded.tokenizer.encode("Once upon")
    return record_here(on, prompt, SamplingParams(max_tokens=4, temperature=1.0, seed=3))


@pytest.fixture(scope="module")
def document(on: Opened, record: dict[str, Any]) -> bytes:
    return make(on.glass, record, FULL, KEY)


def test_evidence_is_exact_on_another_instruction_set(tiny: str, document: bytes) -> None:
    with opened(tiny, "f16", threads=1, isa="scalar") as other:
        found = judge_on(other, read(document, "e"), KEY.public_key())
    assert (found.verdict, found.reasons) == ("EXACT", ("4 steps and all values are there to the bit",))


def test_every_kind_of_tampering_is_found_and_the_place_named(on: Opened, record: dict[str, Any]) -> None:
    again = [{**record, "id": f"rec_{i}"} for i in range(2)]
    result = prove(again, len(IN_PREDICATE) + 7, (on, on))
    assert result["wrong"] == []
    assert result["verdicts"] == {"EXACT": 2}
    assert result["place_named"] == len(result["kinds"]) == len(IN_PREDICATE) + 7


def test_a_value_that_fits_its_digests_is_found_by_running_again(on: Opened, document: bytes) -> None:
    _, data, place = tampered(document, len(IN_PREDICATE))
    found = judge_on(on, read(data, "e"))
    assert found.verdict == "DIVERGED"
    assert found.reasons[0].startswith(f"at step 0 value {place}/steps/0/target: ")


def noticed(data: bytes) -> bool:
    try:
        evidence = read(data, "e")
    except FormatError:
        return True
    return bool(evidence.places) or evidence.signed_by(KEY.public_key()) is not True


def test_any_byte_of_the_file_shows(document: bytes) -> None:
    for at in range(0, len(document), len(document) // 40):
        changed = document[:at] + bytes([document[at] ^ 2]) + document[at + 1 :]
        assert noticed(changed), f"byte {at}"


def test_a_key_that_is_not_known_is_missing_and_said_with_the_result(on: Opened, document: bytes) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    for key in (None, other):
        found = judge_on(on, read(document, "e"), key)
        assert found.verdict == "MISSING"
        assert "key" in found.reasons[0]


def test_no_evidence_is_made_for_an_answer_that_the_model_did_not_give(on: Opened, record: dict[str, Any]) -> None:
    other = json.loads(json.dumps(record))
    other["sequences"][0]["logits"][2] = "0" * 16
    with pytest.raises(RequestError, match="step 2 has logits 0000000000000000"):
        make(on.glass, other, Analysis())


def test_the_lens_at_the_last_block_is_the_logits_themselves(on: Opened, record: dict[str, Any]) -> None:
    prompt, answer = (record["sequences"][0][name]["ids"] for name in ("prompt", "answer"))
    last = on.glass.spec.n_layers - 1
    values = analyse(on.glass, prompt, answer, Analysis(lens=1, layers=(last,)))
    rows = on.loaded.logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
    for row, token, step in zip(rows, answer, values["lens"][0]["steps"], strict=True):
        assert np.float32(step["target"]) == row[token]
        assert step["top"][0] == [int(row.argmax()), float(row.max())]


def test_routes_are_the_routers_choice_with_the_margin_of_the_cut() -> None:
    name = next(name for name, spec in FAMILIES.items() if spec.moe is not None)
    spec = FAMILIES[name]
    values = analyse(LawView(spec, random_weights(spec), 64, "f32"), [1, 2, 3], [4, 5], Analysis(routes=True))
    assert len(values["routes"]) == spec.n_layers
    assert spec.moe is not None
    for layer in values["routes"]:
        for step in layer["steps"]:
            assert len(step["experts"]) == spec.moe.n_experts_per_token
            assert sum(share for _, share in step["experts"]) == pytest.approx(1)
            assert step["cut"] >= 0


def test_routes_of_a_dense_model_and_unknown_layers_are_refused(on: Opened) -> None:
    with pytest.raises(RequestError, match="no experts"):
        analyse(on.glass, [1], [2], Analysis(routes=True))
    with pytest.raises(RequestError, match="blocks 0 to"):
        analyse(on.glass, [1], [2], Analysis(lens=1, layers=(99,)))


def test_a_document_is_what_its_schema_says(document: bytes) -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "evidence.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads(base64.b64decode(json.loads(document)["payload"])), schema)


def test_numbers_are_compared_without_regard_to_how_json_writes_them() -> None:
    assert first_difference([1.0, True], [1, True], "") is None
    assert first_difference([1], [True], "") == ("/0", 1, True)


def test_the_command_proves_and_verifies_an_adapters_answer(
    on: Opened, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_peft(tmp_path / "paint", random_parts(on.glass.spec, 4), {"r": 4, "lora_alpha": 8})
    key, file = tmp_path / "k", tmp_path / "e.json"
    assert _code(["evidence", "--new-key", str(key), "--json"]) == 0
    asked = ["evidence", "--prompt", "Once", "--max-tokens", "3", "--model", tiny, "--adapter", str(adapter)]
    assert _code([*asked, "--lens", "1", "--layers", "0", "--key", str(key), "-o", str(file), "--json"]) == 0
    checked = ["verify", str(file), "--key", f"{key}.pub", "--threads", "1", "--json"]
    capsys.readouterr()
    assert _code([*checked, "--adapter", str(adapter)]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "EXACT"
    assert _code(checked) == 3
    assert "--adapter" in json.loads(capsys.readouterr().out)["reasons"][0]
    record = read(file.read_bytes(), file).record
    (tmp_path / "r.json").write_text(json.dumps(record))
    assert _code(["replay", str(tmp_path / "r.json"), "--adapter", str(adapter), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "EXACT"
    assert _code(["replay", str(tmp_path / "r.json")]) == 2
    assert "--adapter PATH" in capsys.readouterr().err


def test_the_commands_prove_a_record_and_name_what_was_tampered(
    record: dict[str, Any], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> tuple[int, str]:
        code = _code(arguments)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    result = by_commands([record], 2, tmp_path, tiny, None, None, run)
    assert (result["wrong"], result["verdicts"], result["place_named"]) == ([], {"EXACT": 1}, 2)
