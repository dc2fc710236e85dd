"""The smallest valid checkpoint of every layout, as bytes, from one set of random weights.

Written by hand from the descriptions of the layouts, apart from the code under test: a `.gguf` by
`assemble_gguf`, which checks nothing so that the fuzzer may feed it nonsense, `.safetensors` from a
header and numbers, `.pth` by torch. Names and row orders of each dialect stand here once more.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitral.formats.quants import TYPES, row_bytes
from vitral.model.law import F32
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

PLAIN = ModelSpec(
    dim=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    head_dim=4,
    hidden_dim=24,
    vocab_size=8,
    norm_eps=1e-5,
    max_context=16,
    rope=RopeSpec(10_000.0, "none"),
    sliding_window=None,
    tied_embeddings=False,
    moe=None,
)


@dataclass(frozen=True)
class Sample:
    """A checkpoint: its files by name, and which of them (or "" for the folder) is opened."""

    layout: str
    files: dict[str, bytes]
    entry: str

    def write(self, folder: Path) -> Path:
        """Put the files there and return the path to open."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder / self.entry


def weights(spec: ModelSpec, seed: int = 0) -> dict[str, F32]:
    """Random weights that bfloat16 holds exactly, so that every layout can hold the same."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(-128, 128, shape) / 64).astype(np.float32) for name, shape in tensor_shapes(spec).items()
    }


def to_pairs(rows: F32, head_dim: int) -> F32:
    """Row d and row d + head_dim / 2 of each head brought side by side."""
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.ravel()
    return rows.reshape(-1, head_dim, rows.shape[1])[:, order].reshape(rows.shape)


def renamed(spec: ModelSpec, names: dict[str, str], pairs: bool, seed: int = 0) -> Iterator[tuple[str, F32]]:
    """Tensors under foreign names; `names` maps pieces of ours, longest first."""
    for name, value in weights(spec, seed).items():
        foreign = name
        for ours, theirs in names.items():
            foreign = foreign.replace(ours, theirs)
        turned = pairs and name.endswith((".attn.q.weight", ".attn.k.weight"))
        yield foreign, to_pairs(value, spec.head_dim) if turned else value


HF_NAMES = {
    "unembed": "lm_head",
    "embed.": "model.embed_tokens.",
    "ln_final": "model.norm",
    "blocks.": "model.layers.",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp.router": "block_sparse_moe.gate",
    "mlp.experts": "block_sparse_moe.experts",
    ".gate.weight": ".w1.weight",
    ".up.weight": ".w3.weight",
    ".down.weight": ".w2.weight",
    "block_sparse_moe.w1": "block_sparse_moe.gate",
}
META_NAMES = {
    "unembed": "output",
    "embed.": "tok_embeddings.",
    "ln_final": "norm",
    "blocks.": "layers.",
    "ln1": "attention_norm",
    "ln2": "ffn_norm",
    "attn.": "attention.w",
    "mlp.router": "feed_forward.router",
    "mlp.": "feed_forward.",
    ".gate.weight": ".w1.weight",
    ".up.weight": ".w3.weight",
    ".down.weight": ".w2.weight",
    "router": "gate",
}
GGUF_NAMES = {
    "unembed": "output",
    "embed.": "token_embd.",
    "ln_final": "output_norm",
    "blocks.": "blk.",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "attn.o": "attn_output",
    "attn.": "attn_",
    "mlp.router": "ffn_gate_inp",
    "mlp.": "ffn_",
}


# --- GGUF ------------------------------------------------------------------------------------------


def gguf_string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """Type number and bytes; an int as uint32, a float as float32."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    kind = {str: 8, int: 5, float: 6}[type(value[0])]
    items = [gguf_string(v) if kind == 8 else struct.pack("<i" if kind == 5 else "<f", v) for v in value]
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


@dataclass(frozen=True)
class GgufParts:
    """A GGUF file taken apart; nothing in it needs to make sense."""

    metadata: tuple[tuple[str, bytes], ...]  # key, type number and value
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...]  # name, dimensions innermost first, type, offset
    data: bytes
    alignment: int = 32


def assemble_gguf(parts: GgufParts) -> bytes:
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(parts.tensors), len(parts.metadata)))
    out += b"".join(gguf_string(key) + value for key, value in parts.metadata)
    for name, dims, kind, offset in parts.tensors:
        out += gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return bytes(out.ljust(-(-len(out) // parts.alignment) * parts.alignment, b"\0")) + parts.data


def gguf_parts(spec: ModelSpec, types: dict[str, str], **more: Any) -> GgufParts:
    """A model whose tensors are random blocks; `types` maps the end of a name to a weight type, else F32."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": spec.n_layers,
        "llama.context_length": spec.max_context,
        "llama.embedding_length": spec.dim,
        "llama.feed_forward_length": spec.hidden_dim,
        "llama.attention.head_count": spec.n_heads,
        "llama.attention.head_count_kv": spec.n_kv_heads,
        "llama.attention.key_length": spec.head_dim,
        "llama.attention.value_length": spec.head_dim,
        "llama.attention.layer_norm_rms_epsilon": spec.norm_eps,
        "llama.rope.dimension_count": spec.head_dim,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"▁{i}" for i in range(spec.vocab_size - 3))],
        "tokenizer.ggml.scores": [0.0] * spec.vocab_size,
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (spec.vocab_size - 3)],
        "tokenizer.ggml.add_bos_token": True,
        **more,
    }
    if spec.moe:
        metadata["llama.expert_count"] = spec.moe.n_experts
        metadata["llama.expert_used_count"] = spec.moe.n_experts_per_token
    rng = np.random.default_rng(0)
    tensors, data = [], b""
    for name, value in _stacked(spec):
        kind = next((t for end, t in types.items() if name.endswith(end + ".weight")), "F32")
        if kind == "F32":
            raw = value.tobytes()
        else:
            n = value.size // value.shape[-1] * row_bytes(kind, value.shape[-1])
            raw = rng.integers(0, 60, n, dtype=np.uint8).tobytes()
        tensors.append((name, value.shape[::-1], TYPES[kind].ggml_id, len(data)))
        data += raw.ljust(-(-len(raw) // 32) * 32, b"\0")
    return GgufParts(tuple((key, gguf_value(value)) for key, value in metadata.items()), tuple(tensors), data)


def _stacked(spec: ModelSpec) -> Iterator[tuple[str, F32]]:
    """GGUF's tensors, the experts of a layer in one."""
    experts: dict[str, list[F32]] = {}
    for name, value in renamed(spec, GGUF_NAMES, pairs=True):
        if "experts" not in name:
            yield name, value
            continue
        layer, rest = name.split(".ffn_experts.")
        experts.setdefault(f"{layer}.ffn_{rest.split('.')[1]}_exps.weight", []).append(value)
    for name, values in experts.items():
        yield name, np.stack(values)


_SMALL = replace(PLAIN, dim=32, hidden_dim=32, n_kv_heads=1)
_SMALL_TYPES = {
    "token_embd": "F16", "attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "Q4_1", "attn_norm": "F32",
    "ffn_gate": "Q5_0", "ffn_up": "Q5_1", "ffn_down": "IQ4_NL", "output": "BF16",
}  # fmt: skip
_WIDE = replace(PLAIN, dim=256, hidden_dim=32, n_kv_heads=1)
_WIDE_TYPES = {
    "token_embd": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q2_K", "attn_v": "Q5_K",
    "ffn_gate": "Q3_K", "ffn_up": "IQ4_XS", "ffn_down": "Q4_0", "output": "F16",
}  # fmt: skip
_EXPERTS = replace(_SMALL, moe=MoeSpec(2, 1), tied_embeddings=True)

GGUF_PARTS: dict[str, Callable[[], GgufParts]] = {
    "small": lambda: gguf_parts(_SMALL, _SMALL_TYPES),
    "wide": lambda: gguf_parts(_WIDE, _WIDE_TYPES),
    "experts": lambda: gguf_parts(_EXPERTS, {"exps": "Q8_0"}),
}


def gguf() -> list[Sample]:
    """One file of every weight type between them, experts, and a split one."""
    found = [Sample("gguf", {"model.gguf": assemble_gguf(parts())}, "model.gguf") for parts in GGUF_PARTS.values()]
    whole = gguf_parts(_SMALL, _SMALL_TYPES)
    half = len(whole.tensors) // 2
    middle = whole.tensors[half][3]
    files = {}
    for i, (tensors, data) in enumerate(
        [
            (whole.tensors[:half], whole.data[:middle]),
            (tuple((*t[:3], t[3] - middle) for t in whole.tensors[half:]), whole.data[middle:]),
        ]
    ):
        place = {"split.no": i, "split.count": 2, "split.tensors.count": len(whole.tensors)}
        metadata = (whole.metadata if i == 0 else ()) + tuple((k, gguf_value(v)) for k, v in place.items())
        files[f"model-{i + 1:05d}-of-00002.gguf"] = assemble_gguf(GgufParts(metadata, tensors, data))
    return [*found, Sample("gguf", files, "model-00002-of-00002.gguf")]


def imatrix_parts() -> GgufParts:
    """An importance matrix as `llama-imatrix` writes it: sums and counts of a matrix, and of two experts."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    tensors, data = [], b""
    for name, dims in [("blk.0.attn_q.weight", (8, 1)), ("blk.0.ffn_down_exps.weight", (8, 2))]:
        for end, shape in ((".in_sum2", dims), (".counts", (1, dims[1]))):
            tensors.append((name + end, shape, TYPES["F32"].ggml_id, len(data)))
            data += np.arange(1, np.prod(shape) + 1, dtype="<f4").tobytes().ljust(64, b"\0")
    return GgufParts(tuple((key, gguf_value(value)) for key, value in metadata.items()), tuple(tensors), data)


def imatrix() -> list[Sample]:
    """`imatrix_parts` as a file."""
    return [Sample("imatrix", {"model.gguf": assemble_gguf(imatrix_parts())}, "model.gguf")]


# --- safetensors -----------------------------------------------------------------------------------


def bfloat16(value: F32) -> bytes:
    return (value.view(np.uint32) >> 16).astype("<u2").tobytes()


def assemble_safetensors(header: bytes, data: bytes) -> bytes:
    padded = header.ljust(-(-len(header) // 8) * 8, b" ")
    return struct.pack("<Q", len(padded)) + padded + data


def safetensors_file(tensors: list[tuple[str, F32]], dtype: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors:
        raw = bfloat16(value) if dtype == "BF16" else value.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return assemble_safetensors(json.dumps(header, separators=(",", ":")).encode(), data)


def hf_config(spec: ModelSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if spec.moe else "LlamaForCausalLM"],
        "model_type": "mixtral" if spec.moe else "llama",
        "hidden_act": "silu",
        "hidden_size": spec.dim,
        "intermediate_size": spec.hidden_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.max_context,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied_embeddings,
        "torch_dtype": "bfloat16",
    }
    if spec.moe:
        config |= {
            "num_local_experts": spec.moe.n_experts,
            "num_experts_per_tok": spec.moe.n_experts_per_token,
            "sliding_window": None,
        }
    elif spec.rope.scaling == "none":
        config["rope_scaling"] = None
    return config


def safetensors() -> list[Sample]:
    """One file; sharded ones with their index; experts."""
    tensors = list(renamed(PLAIN, HF_NAMES, pairs=False))
    scaled = hf_config(PLAIN) | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    }
    single = {"config.json": dumped(scaled), "model.safetensors": safetensors_file(tensors, "BF16")}
    half = len(tensors) // 2
    shards = {"model-00001-of-00002.safetensors": tensors[:half], "model-00002-of-00002.safetensors": tensors[half:]}
    index = {
        "metadata": {"total_size": sum(2 * v.size for _, v in tensors)},
        "weight_map": {name: file for file, some in shards.items() for name, _ in some},
    }
    sharded = {
        "config.json": dumped(hf_config(PLAIN)),
        "model.safetensors.index.json": dumped(index),
        **{file: safetensors_file(some, "F16") for file, some in shards.items()},
    }
    mixture = replace(PLAIN, moe=MoeSpec(2, 1), tied_embeddings=True)
    experts = {
        "config.json": dumped(hf_config(mixture)),
        "model.safetensors": safetensors_file(list(renamed(mixture, HF_NAMES, pairs=False)), "F32"),
    }
    return [Sample("safetensors", files, "") for files in (single, sharded, experts)]


def dumped(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


# --- Mistral ---------------------------------------------------------------------------------------


def mistral() -> list[Sample]:
    """A dense model and one with experts."""
    samples = []
    for spec in (PLAIN, replace(PLAIN, moe=MoeSpec(2, 1))):
        names = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps")
        params: dict[str, Any] = {name: getattr(spec, name) for name in names}
        params |= {"rope_theta": spec.rope.theta, "max_seq_len": spec.max_context}
        if spec.moe:
            params["moe"] = {"num_experts": 2, "num_experts_per_tok": 1}
        tensors = list(renamed(spec, META_NAMES, pairs=True))
        files = {"params.json": dumped(params), "consolidated.safetensors": safetensors_file(tensors, "BF16")}
        samples.append(Sample("mistral", files, ""))
    return samples


# --- Meta ------------------------------------------------------------------------------------------

_BY_COLUMNS = ("tok_embeddings.weight", "attention.wo.weight", "feed_forward.w2.weight")


def meta() -> list[Sample]:
    """One shard, and two as Llama 2 has them (embedding by columns)."""
    import torch

    params = {"dim": 8, "multiple_of": 8, "n_heads": 2, "n_layers": 1, "norm_eps": 1e-5, "vocab_size": -1}
    shards: list[dict[str, Any]] = [{}, {}]
    whole: dict[str, Any] = {}
    for name, value in renamed(PLAIN, META_NAMES, pairs=True):
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(torch.bfloat16)
        whole[name] = tensor
        for i, shard in enumerate(shards):
            if value.ndim == 1:
                shard[name] = tensor.clone()
            else:
                shard[name] = tensor.chunk(2, dim=1 if name.endswith(_BY_COLUMNS) else 0)[i].clone()
    for shard in shards:
        shard["rope.freqs"] = torch.ones(2)
    one = {"params.json": dumped(params), "consolidated.00.pth": _saved(whole)}
    two = {"params.json": dumped(params)}
    two |= {f"consolidated.{i:02d}.pth": _saved(shard) for i, shard in enumerate(shards)}
    return [Sample("meta", one, ""), Sample("meta", two, "")]


def _saved(tensors: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


# --- llama2.c --------------------------------------------------------------------------------------


def llama2c() -> list[Sample]:
    """With a classifier of its own, and without."""
    samples = []
    for tied in (False, True):
        spec = replace(PLAIN, tied_embeddings=tied)
        w = weights(spec)
        w["blocks.0.attn.q.weight"] = to_pairs(w["blocks.0.attn.q.weight"], spec.head_dim)
        w["blocks.0.attn.k.weight"] = to_pairs(w["blocks.0.attn.k.weight"], spec.head_dim)
        order = ["embed.weight", *(f"blocks.0.{n}.weight" for n in _LLAMA2C_ORDER), "ln_final.weight"]
        vocab = spec.vocab_size if tied else -spec.vocab_size
        sizes = (spec.dim, spec.hidden_dim, 1, spec.n_heads, spec.n_kv_heads, vocab, spec.max_context)
        data = struct.pack("<7i", *sizes) + b"".join(w[name].tobytes() for name in order)
        data += bytes(4 * 2 * spec.max_context * spec.head_dim // 2)  # cosines and sines of old versions
        data += b"" if tied else w["unembed.weight"].tobytes()
        samples.append(Sample("llama2c", {"model.bin": data}, "model.bin"))
    return samples


_LLAMA2C_ORDER = ("ln1", "attn.q", "attn.k", "attn.v", "attn.o", "ln2", "mlp.gate", "mlp.down", "mlp.up")

LAYOUTS: dict[str, Callable[[], list[Sample]]] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "meta": meta,
    "mistral": mistral,
    "llama2c": llama2c,
}
