"""The scan: everything hostile is refused for its reason, nothing harmless is."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.formats import tiny
from tests.provenance.hostile import CORPUS, PLAIN, called, template, torch_zip
from vitral.errors import ModelNotFound, SettingsError, UnsafeFile
from vitral.provenance.accepted import accept, acceptances
from vitral.provenance.gate import admit
from vitral.provenance.scan import scan
from vitral.tokenizer.chat import built_in, built_in_names


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_file_is_refused_for_its_reason(name: str, tmp_path: Path) -> None:
    build, rule = CORPUS[name]
    build(tmp_path)
    found = scan(tmp_path)
    wrong = found.of("refused")
    assert found.verdict().passed is False
    assert any(finding.rule.startswith(rule) for finding in wrong), (rule, found.findings)
    assert all(finding.text and len(finding.text) < 700 and "\n" not in finding.text for finding in wrong)


def test_nothing_of_a_pickle_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.bin").write_bytes(called("builtins", "print", b"\x8c\x04boom"))
    scan(tmp_path)
    assert "boom" not in capsys.readouterr().out


def benign(folder: Path) -> int:
    """Models and files that nobody should be kept from using; returns how many."""
    count = 0

    def put(name: str, data: bytes) -> None:
        nonlocal count
        count += 1
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    samples = [*tiny.gguf(), *tiny.safetensors(), *tiny.mistral(), *tiny.llama2c()]
    for i, sample in enumerate(samples):
        for name, data in sample.files.items():
            put(f"layout{i}/{name}", data)
    rng = Random(0)
    for i in range(120):
        types = {"attn_q": rng.choice(["Q8_0", "F16", "Q4_0"]), "ffn_up": rng.choice(["Q4_1", "F32", "BF16"])}
        texts = {"general.author": f"author {i}", "tokenizer.chat_template": rng.choice([PLAIN, built_in("chatml")])}
        put(f"gguf/{i}.gguf", tiny.assemble_gguf(tiny.gguf_parts(tiny._SMALL, types, **texts)))
        values = np.random.default_rng(i).standard_normal((rng.randrange(1, 9), 8)).astype(np.float32)
        put(f"safe/{i}.safetensors", tiny.safetensors_file([(f"t{i}", values)], rng.choice(["F32", "F16", "BF16"])))
        config = {**tiny.hf_config(tiny.PLAIN), "rope_theta": 1e4 * (i + 1), "_name_or_path": f"a/b{i}"}
        put(f"config/{i}/config.json", json.dumps(config).encode())
        stored = io.BytesIO()
        np.save(stored, values)
        put(f"numpy/{i}.npy", stored.getvalue())
    for i, protocol in enumerate((2, 3, 4, 5) * 6):
        data = {"a": [i, 2.5, None, True], "b": {"c": (1, "x")}, "n": np.arange(3), "s": {1, 2}, "x": b"bytes"}
        put(f"pickle/{i}.bin", pickle.dumps(data, protocol))
        with zipfile.ZipFile(folder / f"pickle/{i}.npz", "w") as archive:
            archive.writestr("a.npy", stored.getvalue())
        count += 1
    for name in built_in_names():
        put(f"templates/{name}.jinja", built_in(name).encode())
    return count + _from_packages(folder, put)


def _from_packages(folder: Path, put: object) -> int:
    """Chat templates of real models, as TRL brings them along."""
    found = importlib.util.find_spec("trl")
    if found is None or found.submodule_search_locations is None:
        return 0
    for root in found.submodule_search_locations:
        for file in sorted(Path(root).glob("chat_templates/*.jinja")):
            put(f"trl/{file.name}", file.read_bytes())  # type: ignore[operator]
    return 0


def test_of_500_benign_files_none_is_refused(tmp_path: Path) -> None:
    count = benign(tmp_path)
    found = scan(tmp_path)
    assert count >= 500
    assert len(found.files) >= 500
    assert found.of("refused") == []


def test_benign_torch_files_are_not_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    for i, kind in enumerate(kinds):
        state = {"a": torch.ones(3, 4).to(kind), "step": 3, "shape": torch.Size([2]), "dtype": kind}
        torch.save(state, tmp_path / f"{i}.pt")
        torch.save(state, tmp_path / f"old{i}.bin", _use_new_zipfile_serialization=False)
    for sample in tiny.meta():
        sample.write(tmp_path / sample.layout)
    assert scan(tmp_path).of("refused") == []


def test_the_embedded_model_passes(smollm2: Path) -> None:
    found = scan(smollm2)
    assert found.verdict().passed is True
    [able] = found.templates.values()
    assert "messages" in able.variables


def test_a_cache_of_the_hub_is_made_of_links_and_passes(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "d1").write_bytes(b'{"hidden_size": 8}')
    (snapshot / "config.json").symlink_to("../../blobs/d1")
    assert scan(snapshot).verdict().passed is True
    (snapshot / "other").symlink_to("../../../models--c--d/blobs/d2")
    assert [finding.rule for finding in scan(snapshot).of("refused")] == ["link-broken"]


def test_a_template_that_differs_from_the_base_is_shown(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
    template(PLAIN)(tmp_path / "base")
    template(PLAIN.replace("m.content", "m.content|trim"))(tmp_path / "tuned")
    verdict = scan(tmp_path / "tuned", base=tmp_path / "base").verdict()
    assert verdict.passed is None
    assert "|trim" in verdict.reasons[0]
    assert scan(tmp_path / "base", base=tmp_path / "base").verdict().passed is True


def test_capabilities_name_what_a_template_looks_for(tmp_path: Path) -> None:
    template("{% for m in messages %}{{ m.content }}{% if '</think>' in m.content %}!{% endif %}{% endfor %}")(tmp_path)
    [able] = scan(tmp_path).templates.values()
    assert able.looks_for == ("</think>",)


def test_findings_say_what_a_person_must_look_at(tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("hello\n")
    (tmp_path / "modeling.py").write_text("x = 1\n")
    verdict = scan(tmp_path).verdict()
    assert verdict.passed is None
    assert len(verdict.reasons) == 2


def test_loading_refuses_what_scanning_refuses_until_it_is_accepted(tmp_path: Path) -> None:
    model, home = tmp_path / "model", tmp_path / "home"
    model.mkdir()
    torch_zip(called("posix", "system"))(model)
    with pytest.raises(UnsafeFile, match=r"posix\.system.*--accept"):
        admit(model, home)
    with pytest.raises(SettingsError, match="a reason is wanted"):
        accept(home, scan(model), " ")
    accept(home, scan(model), "looked at by hand")
    admit(model, home)
    [record] = acceptances(home)
    assert record.reason == "looked at by hand"
    assert record.who
    torch_zip(called("posix", "systen"))(model)
    with pytest.raises(UnsafeFile):
        admit(model, home)


def test_what_has_no_content_cannot_be_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/nowhere")
    with pytest.raises(SettingsError, match="remove it"):
        accept(tmp_path / "home", scan(tmp_path), "why not")


def test_a_path_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        scan(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0)
    assert scan(tmp_path).of("refused")[0].rule in ("unreadable", "structure")
