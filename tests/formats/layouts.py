"""The same weights in every layout, written by programs that are not ours where there are any.

transformers writes Hugging Face folders, the package `gguf` GGUF files, torch Meta's shards and the
package `safetensors` Mistral's file. Names and row orders of the dialects stand here once more, apart
from the code under test.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file

from tests.parity.test_transformers import their_model
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

WORDS = {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "gate": "w1", "up": "w3", "down": "w2"}


def pairs_side_by_side(rows: F32, n_heads: int) -> F32:
    """Meta's order of query and key rows: what Hugging Face's conversion undoes."""
    return rows.reshape(n_heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def turned(spec: ModelSpec, weights: dict[str, F32]) -> dict[str, F32]:
    found = dict(weights)
    for i in range(spec.n_layers):
        for name, heads in (("q", spec.n_heads), ("k", spec.n_kv_heads)):
            key = f"blocks.{i}.attn.{name}.weight"
            found[key] = pairs_side_by_side(weights[key], heads)
    return found


def meta_names(spec: ModelSpec, weights: dict[str, F32]) -> dict[str, F32]:
    top = {"embed.weight": "tok_embeddings.weight", "ln_final.weight": "norm.weight", "unembed.weight": "output.weight"}
    found = {}
    for name, value in turned(spec, weights).items():
        if name in top:
            found[top[name]] = value
            continue
        _, layer, rest = name.split(".", 2)
        parts = rest.removesuffix(".weight").split(".")
        if parts[0] in ("ln1", "ln2"):
            theirs = {"ln1": "attention_norm", "ln2": "ffn_norm"}[parts[0]]
        elif parts[0] == "attn":
            theirs = f"attention.{WORDS[parts[1]]}"
        elif parts[1] == "router":
            theirs = "feed_forward.gate"
        elif parts[1] == "experts":
            theirs = f"feed_forward.experts.{parts[2]}.{WORDS[parts[3]]}"
        else:
            theirs = f"feed_forward.{WORDS[parts[1]]}"
        found[f"layers.{layer}.{theirs}.weight"] = np.ascontiguousarray(value)
    return found


def write_hf(folder: Path, spec: ModelSpec, weights: dict[str, F32], **how: Any) -> Path:
    their_model(spec, weights).save_pretrained(folder, **how)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = spec.max_context
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_mistral(folder: Path, spec: ModelSpec, weights: dict[str, F32]) -> Path:
    folder.mkdir(parents=True)
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps")
    params: dict[str, Any] = {name: getattr(spec, name) for name in names}
    params |= {"rope_theta": spec.rope.theta, "max_seq_len": spec.max_context}
    if spec.sliding_window:
        params["sliding_window"] = spec.sliding_window
    if spec.moe:
        params["moe"] = {"num_experts": spec.moe.n_experts, "num_experts_per_tok": spec.moe.n_experts_per_token}
    (folder / "params.json").write_text(json.dumps(params))
    save_file(meta_names(spec, weights), folder / "consolidated.safetensors")
    return folder


def write_first_mixtral(folder: Path, spec: ModelSpec, weights: dict[str, F32]) -> Path:
    """As Mixtral 8x7B was first published: experts below each other, w2 turned, tensors spread over torch files."""
    write_mistral(folder, spec, weights)
    (folder / "consolidated.safetensors").unlink()
    assert spec.moe
    found = {k: v for k, v in meta_names(spec, weights).items() if "feed_forward" not in k}
    for i in range(spec.n_layers):
        prefix = f"blocks.{i}.mlp"
        found[f"layers.{i}.block_sparse_moe.gate.weight"] = weights[f"{prefix}.router.weight"]
        for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            each = [weights[f"{prefix}.experts.{e}.{ours}.weight"] for e in range(spec.moe.n_experts)]
            found[f"layers.{i}.block_sparse_moe.{theirs}"] = np.concatenate(
                [w.T if ours == "down" else w for w in each]
            )
    names = sorted(found)
    for part in range(3):
        some = {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in names[part::3]}
        torch.save(some, folder / f"consolidated.{part:02d}.pt")
    return folder


def meta_params(spec: ModelSpec) -> dict[str, Any]:
    params: dict[str, Any] = {"dim": spec.dim, "n_layers": spec.n_layers, "n_heads": spec.n_heads, "vocab_size": -1}
    params |= {"norm_eps": spec.norm_eps, "rope_theta": spec.rope.theta, "max_seq_len": spec.max_context}
    params |= {"multiple_of": 32, "ffn_dim_multiplier": spec.hidden_dim / (8 * spec.dim / 3)}
    if spec.n_kv_heads != spec.n_heads:
        params["n_kv_heads"] = spec.n_kv_heads
    return params


def write_meta(folder: Path, spec: ModelSpec, weights: dict[str, F32], shards: int, embedding_axis: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(meta_params(spec)))
    for i in range(shards):
        state = {}
        for name, value in meta_names(spec, weights).items():
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            if value.ndim == 2:
                by_columns = name.endswith((".wo.weight", ".w2.weight"))
                axis = embedding_axis if name.startswith("tok") else int(by_columns)
                tensor = tensor.chunk(shards, dim=axis)[i].clone()
            state[name] = tensor
        state["rope.freqs"] = torch.ones(spec.head_dim // 2)
        torch.save(state, folder / f"consolidated.{i:02d}.pth")
    return folder


def write_gguf(path: Path, spec: ModelSpec, weights: dict[str, F32], stacked: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.n_layers)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.dim)
    writer.add_feed_forward_length(spec.hidden_dim)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_vocab_size(spec.vocab_size)
    if spec.sliding_window:
        writer.add_sliding_window(spec.sliding_window)
    if spec.rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rope.factor)
    if spec.rope.factors:
        writer.add_tensor("rope_freqs.weight", np.array(spec.rope.factors, np.float32))
    if spec.moe:
        writer.add_expert_count(spec.moe.n_experts)
        writer.add_expert_used_count(spec.moe.n_experts_per_token)
        writer.add_leading_dense_block_count(spec.moe.n_leading_dense)
    for name, value in gguf_tensors(spec, turned(spec, weights), stacked).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(spec: ModelSpec, weights: dict[str, F32], stacked: bool) -> dict[str, F32]:
    found = {"token_embd.weight": weights["embed.weight"], "output_norm.weight": weights["ln_final.weight"]}
    if not spec.tied_embeddings:
        found["output.weight"] = weights["unembed.weight"]
    words = {"ln1": "attn_norm", "ln2": "ffn_norm", "attn.o": "attn_output", "mlp.router": "ffn_gate_inp"}
    words |= {f"attn.{x}": f"attn_{x}" for x in "qkv"} | {f"mlp.{x}": f"ffn_{x}" for x in ("gate", "up", "down")}
    for i in range(spec.n_layers):
        for ours, theirs in words.items():
            if f"blocks.{i}.{ours}.weight" in weights:
                found[f"blk.{i}.{theirs}.weight"] = weights[f"blocks.{i}.{ours}.weight"]
        moe = spec.moe_of(i)
        for x in ("gate", "up", "down") if moe else ():
            each = [weights[f"blocks.{i}.mlp.experts.{e}.{x}.weight"] for e in range(moe.n_experts)]
            if stacked:
                found[f"blk.{i}.ffn_{x}_exps.weight"] = np.stack(each)
            else:
                found |= {f"blk.{i}.ffn_{x}.{e}.weight": one for e, one in enumerate(each)}
    return found


def write_llama2c(path: Path, spec: ModelSpec, weights: dict[str, F32]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    w = turned(spec, weights)
    vocabulary = spec.vocab_size if spec.tied_embeddings else -spec.vocab_size
    numbers = (spec.dim, spec.hidden_dim, spec.n_layers, spec.n_heads, spec.n_kv_heads, vocabulary, spec.max_context)
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *numbers) + w["embed.weight"].tobytes())
        for name in ("ln1", "attn.q", "attn.k", "attn.v", "attn.o", "ln2", "mlp.gate", "mlp.down", "mlp.up"):
            for i in range(spec.n_layers):
                file.write(w[f"blocks.{i}.{name}.weight"].tobytes())
        file.write(w["ln_final.weight"].tobytes() + bytes(4 * spec.max_context * spec.head_dim))
        if not spec.tied_embeddings:
            file.write(w["unembed.weight"].tobytes())
    return path
