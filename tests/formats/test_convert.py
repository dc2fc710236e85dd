"""A converted model is the same model: every layout to GGUF and safetensors, and others can read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats import tiny
from tests.parity.families import FAMILIES, IN_TRANSFORMERS, random_weights
from vitral.errors import FormatError, SpecError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import TokenizerFiles, convert
from vitral.formats.gguf import GgufFile
from vitral.model.law import F32

for module in ("torch", "transformers", "gguf", "safetensors"):  # layouts.py needs them
    pytest.importorskip(module)
from tests.formats import layouts  # noqa: E402


def values(path: Path) -> dict[str, F32]:
    checkpoint = open_checkpoint(path)
    return {name: tensor.dequantize() for name, tensor in checkpoint.weights.items()}


def same(first: dict[str, F32], second: dict[str, F32]) -> bool:
    return first.keys() == second.keys() and all(first[n].tobytes() == second[n].tobytes() for n in first)


SAMPLES = [(layout, i, sample) for layout, make in tiny.LAYOUTS.items() for i, sample in enumerate(make())]


@pytest.mark.parametrize("sample", [c for _, _, c in SAMPLES], ids=[f"{a}-{b}" for a, b, _ in SAMPLES])
def test_every_layout_becomes_gguf_and_safetensors_with_the_same_values(tmp_path: Path, sample: tiny.Sample) -> None:
    source = sample.write(tmp_path / "source")
    before, spec = values(source), open_checkpoint(source).spec
    done: list[tuple[int, int]] = []
    errors = convert(source, tmp_path / "m.gguf", progress=lambda *step: done.append(step))
    assert same(values(tmp_path / "m.gguf"), before)
    assert sorted(error.name for error in errors) == sorted(before)
    assert not any(error.rmse for error in errors)
    assert done == [(i + 1, len(before)) for i in range(len(before))]
    convert(source, tmp_path / "hf", layout="safetensors")
    assert same(values(tmp_path / "hf"), before)
    for path in (tmp_path / "m.gguf", tmp_path / "hf"):
        found = open_checkpoint(path).spec
        assert replace(found, norm_eps=spec.norm_eps) == spec
    convert(tmp_path / "hf", tmp_path / "again.gguf")
    assert same(values(tmp_path / "again.gguf"), before)


@pytest.mark.parametrize("family", [f for f in IN_TRANSFORMERS if f not in ("llama-dynamic", "llama-factors")])
def test_transformers_computes_the_same_from_what_we_write(tmp_path: Path, family: str) -> None:
    import torch
    import transformers

    spec = FAMILIES[family]
    weights = random_weights(spec)
    theirs = layouts.their_model(spec, weights)
    layouts.write_hf(tmp_path / "theirs", spec, weights)
    convert(tmp_path / "theirs", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "ours", layout="safetensors", shard_bytes=100_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        a, b = (m(ids).logits for m in (theirs, model.eval()))
    assert torch.allclose(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    import gguf

    spec = FAMILIES["mixtral"]
    weights = random_weights(spec)
    source = layouts.write_mistral(tmp_path / "mistral", spec, weights)
    convert(source, tmp_path / "m.gguf")
    theirs = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = layouts.gguf_tensors(spec, layouts.turned(spec, weights), stacked=True)
    assert theirs.keys() == expected.keys()
    assert all(np.array_equal(theirs[name], expected[name]) for name in expected)


def test_quantising_reports_the_error_of_each_tensor(tmp_path: Path) -> None:
    spec = FAMILIES["mixtral"]
    weights = random_weights(spec)
    source = layouts.write_mistral(tmp_path / "mistral", spec, weights)
    errors = {error.name: error for error in convert(source, tmp_path / "m.gguf", type="Q8_0")}
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    for name, tensor in checkpoint.weights.items():
        wanted = "F32" if "ln" in name or "router" in name else "Q8_0"
        assert tensor.type.name == errors[name].type == wanted
        difference = tensor.dequantize().astype(np.float64) - weights[name]
        assert errors[name].rmse == pytest.approx(float(np.sqrt((difference**2).mean())), rel=1e-4, abs=1e-12)
    assert GgufFile.open(tmp_path / "m.gguf").metadata["general.file_type"] == 7


def test_quantised_tensors_keep_their_bytes_in_gguf_and_become_float32_in_safetensors(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["gguf"]()[0].write(tmp_path / "source")
    before = open_checkpoint(source).weights
    convert(source, tmp_path / "m.gguf")
    assert open_checkpoint(tmp_path / "m.gguf").weights.digest() == before.digest()
    convert(source, tmp_path / "hf", layout="safetensors", type="BF16")
    kinds = {tensor.type.name for tensor in open_checkpoint(tmp_path / "hf").weights.values()}
    assert kinds == {"BF16"}


def test_metadata_of_gguf_is_carried_over_with_its_types(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["gguf"]()[0].write(tmp_path / "source")
    convert(source, tmp_path / "m.gguf", type="F16")
    before, after = GgufFile.open(source), GgufFile.open(tmp_path / "m.gguf")
    for key in before.metadata:
        if key.startswith("tokenizer.") or key == "general.name":
            assert after.types[key] == before.types[key], key
            assert np.array_equal(after.metadata[key], before.metadata[key]), key
    assert "general.quantization_version" not in after.metadata


def test_a_tokenizer_that_is_given_goes_into_the_file_or_folder(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["meta"]()[0].write(tmp_path / "source")
    given = TokenizerFiles({"tokenizer.ggml.model": "llama"}, {"tokenizer.model": b"abc"})
    convert(source, tmp_path / "m.gguf", tokenizer=given)
    assert GgufFile.open(tmp_path / "m.gguf").metadata["tokenizer.ggml.model"] == "llama"
    convert(source, tmp_path / "hf", layout="safetensors", tokenizer=given)
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == b"abc"
    (source / "tokenizer.model").write_bytes(b"its own")
    convert(source, tmp_path / "hf2", layout="safetensors", tokenizer=given)
    assert (tmp_path / "hf2" / "tokenizer.model").read_bytes() == b"its own"


def test_shards_are_written_by_size_and_read_again(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["safetensors"]()[1].write(tmp_path / "source")
    convert(source, tmp_path / "hf", layout="safetensors", shard_bytes=400)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert open_checkpoint(tmp_path / "hf").weights.digest() == open_checkpoint(source).weights.digest()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["gguf"]()[0].write(tmp_path / "source")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (source, {}, "is the model itself"),
        (tmp_path / "x", {"layout": "onnx"}, "layout 'onnx' is not written; allowed: gguf, safetensors"),
        (tmp_path / "x", {"type": "Q4_KM"}, "Q4_K"),
        (tmp_path / "x", {"layout": "safetensors", "type": "Q8_0"}, "allowed: F32, F16, BF16"),
        (tmp_path / "source", {"layout": "safetensors"}, "not an empty folder"),
    ]
    for dst, how, said in cases:
        with pytest.raises(FormatError, match=said):
            convert(source, dst, **how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    dynamic = FAMILIES["llama-dynamic"]
    folder = layouts.write_hf(tmp_path / "hf", dynamic, random_weights(dynamic))
    with pytest.raises(SpecError, match="GGUF has no words"):
        convert(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
