"""The same weights in every layout are one model: the same spec, digests and logits, to the bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.parity.families import FAMILIES, IN_TRANSFORMERS, random_weights
from vitral.errors import TensorMismatch
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.model.reference import Reference
from vitral.model.spec import ModelSpec

for module in ("torch", "transformers", "gguf", "safetensors"):  # layouts.py needs them
    pytest.importorskip(module)
from tests.formats import layouts  # noqa: E402

PROMPT = [1, 17, 4, 99, 4, 23, 42, 8, 15, 16, 1, 2]


def logits_digest(checkpoint: Checkpoint) -> str:
    logits = Reference(checkpoint.spec, checkpoint.weights.law(), context_length=32).forward(PROMPT)
    return hashlib.sha256(logits.tobytes()).hexdigest()


def written(folder: Path, family: str) -> tuple[ModelSpec, dict[str, Path]]:
    """Every layout that can say what this family is, by a label whose first word is the layout."""
    spec = FAMILIES[family]
    if spec.rope.scaling == "none" and not spec.moe:
        spec = replace(spec, rope=replace(spec.rope, theta=10_000.0))
    weights = random_weights(spec)
    paths: dict[str, Path] = {}
    if spec.rope.scaling != "factors":
        paths["safetensors"] = layouts.write_hf(folder / "hf", spec, weights)
        paths["safetensors, sharded"] = layouts.write_hf(folder / "shards", spec, weights, max_shard_size="100KB")
    if spec.rope.scaling in ("none", "linear", "factors"):
        paths["gguf"] = layouts.write_gguf(folder / "model.gguf", spec, weights)
    if spec.moe:
        paths["gguf, experts apart"] = layouts.write_gguf(folder / "apart.gguf", spec, weights, stacked=False)
        paths["mistral, first Mixtral"] = layouts.write_first_mixtral(folder / "first", spec, weights)
    if spec.rope.scaling == "none":
        paths["mistral"] = layouts.write_mistral(folder / "mistral", spec, weights)
        standard = spec.moe is None and spec.sliding_window is None and spec.n_heads * spec.head_dim == spec.dim
        if standard:
            paths["meta"] = layouts.write_meta(folder / "meta", spec, weights, shards=1)
            paths["meta, 2 shards"] = layouts.write_meta(folder / "meta2", spec, weights, shards=2)
            paths["meta, 2 shards, rows"] = layouts.write_meta(folder / "meta3", spec, weights, 2, embedding_axis=0)
            paths["llama2c"] = layouts.write_llama2c(folder / "model.bin", spec, weights)
    return spec, paths


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_every_layout_gives_the_same_model(tmp_path: Path, family: str) -> None:
    spec, paths = written(tmp_path, family)
    weights = random_weights(spec)
    found = {label: open_checkpoint(path) for label, path in paths.items()}
    for label, checkpoint in found.items():
        assert checkpoint.layout == label.split(",")[0], label
        assert rounded(checkpoint.spec) == rounded(spec), label
        for name, tensor in checkpoint.weights.items():
            assert tensor.dequantize().tobytes() == weights[name].tobytes(), (label, name)
    assert len({checkpoint.weights.digest() for checkpoint in found.values()}) == 1
    # GGUF keeps the base and epsilon in float32, as the numbers below do
    digests = {label: logits_digest(checkpoint) for label, checkpoint in found.items()}
    assert len(set(digests.values())) == 1, digests


def rounded(spec: ModelSpec) -> ModelSpec:
    """GGUF holds epsilon as float32."""
    return replace(spec, norm_eps=float(np.float32(spec.norm_eps)))


def test_tied_embeddings_are_found_in_every_layout(tmp_path: Path) -> None:
    spec = replace(FAMILIES["llama-2"], tied_embeddings=True)
    weights = random_weights(spec)
    paths = [
        layouts.write_hf(tmp_path / "hf", spec, weights),
        layouts.write_gguf(tmp_path / "model.gguf", spec, weights),
        layouts.write_mistral(tmp_path / "mistral", spec, weights),
        layouts.write_meta(tmp_path / "meta", spec, weights, shards=1),
        layouts.write_llama2c(tmp_path / "model.bin", spec, weights),
    ]
    found = [open_checkpoint(path) for path in paths]
    assert all(checkpoint.spec.tied_embeddings for checkpoint in found)
    assert len({checkpoint.weights.digest() for checkpoint in found}) == 1


def test_a_tied_model_may_store_its_matrix_twice_but_not_two_matrices(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    spec = replace(FAMILIES["llama-2"], tied_embeddings=True)
    folder = layouts.write_hf(tmp_path / "hf", spec, random_weights(spec))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors")
    assert "unembed.weight" not in open_checkpoint(folder).weights
    state["lm_head.weight"] = torch.ones_like(state["lm_head.weight"])
    save_file(state, folder / "model.safetensors")
    with pytest.raises(TensorMismatch, match="one matrix .* two that differ"):
        open_checkpoint(folder)


def test_torch_files_of_hugging_face_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    spec = FAMILIES["llama-2"]
    folder = layouts.write_hf(tmp_path / "hf", spec, random_weights(spec))
    before = open_checkpoint(folder).weights.digest()
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as old checkpoints have it
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.nn.Parameter(value) for name, value in state.items()}, folder / "pytorch_model.bin")
    assert open_checkpoint(folder).weights.digest() == before


def test_stories260k_is_read_right(data_dir: Path) -> None:
    folder = data_dir / "model-stories260k"
    expected = json.loads((folder / "expected.json").read_text())
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.layout, checkpoint.spec.n_kv_heads, checkpoint.spec.max_context) == ("llama2c", 4, 512)
    model = Reference(checkpoint.spec, checkpoint.weights.law(), context_length=512)
    case = expected["greedy"][0]
    ids = case["prompt_ids"] + case["generated_ids"]
    logits = model.forward(ids[:-1])[len(case["prompt_ids"]) - 1 :]
    assert logits.argmax(axis=-1).tolist() == case["generated_ids"]


def test_weights_name_what_is_missing_left_over_or_of_another_shape(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    spec = FAMILIES["llama-2"]
    folder = layouts.write_hf(tmp_path / "hf", spec, random_weights(spec))
    file = folder / "model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if name != "model.norm.weight"}, file)
    with pytest.raises(TensorMismatch, match=r"ln_final\.weight is missing"):
        open_checkpoint(folder)
    save_file({**whole, "model.layers.0.self_attn.q_proj.bias": whole["model.norm.weight"]}, file)
    with pytest.raises(TensorMismatch, match=r"q_proj\.bias"):
        open_checkpoint(folder)
    save_file({**whole, "model.layers.2.mlp.up_proj.weight": whole["model.layers.1.mlp.up_proj.weight"]}, file)
    with pytest.raises(TensorMismatch, match=r"blocks\.2\.mlp\.up\.weight is left over.*blocks"):
        open_checkpoint(folder)
    save_file({**whole, "model.norm.weight": whole["model.norm.weight"][:-1]}, file)
    with pytest.raises(TensorMismatch, match=r"ln_final\.weight has shape \(63,\); the configuration wants \(64,\)"):
        open_checkpoint(folder)


def test_weights_must_be_consumed_to_the_last_one(tmp_path: Path) -> None:
    spec = FAMILIES["llama-2"]
    weights = open_checkpoint(layouts.write_gguf(tmp_path / "m.gguf", spec, random_weights(spec))).weights
    for name in list(weights)[1:]:
        weights.take(name)
    with pytest.raises(TensorMismatch, match="1 tensors were never used: "):
        weights.finish()
    weights.take(next(iter(weights)))
    weights.finish()
    with pytest.raises(TensorMismatch, match=r"no tensor blocks\.0\.attn\.p\.weight; the nearest name found is blocks"):
        weights.take("blocks.0.attn.p.weight")
