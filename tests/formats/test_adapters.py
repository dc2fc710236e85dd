from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.families import FAMILIES
from vitral.errors import FormatError, ModelNotFound, TensorMismatch
from vitral.formats.adapters import Adapter, read_adapter
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.mapping import gguf_name, hf_name
from vitral.formats.quants import TYPES
from vitral.formats.rows import halves_to_pairs
from vitral.model.law import F32, LowRank
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec

LLAMA, MIXTRAL = FAMILIES["llama-2-grouped"], FAMILIES["mixtral"]


def random_parts(spec: ModelSpec, rank: int = 3, scale: float = 0.5, seed: int = 0) -> dict[str, LowRank]:
    """A part for every matrix that can have one."""
    rng = np.random.default_rng(seed)
    parts = {}
    for name, shape in tensor_shapes(spec).items():
        if len(shape) == 2 and name.startswith("blocks.") and "router" not in name:
            a, b = rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))
            parts[name] = LowRank((a / np.sqrt(shape[1])).astype(np.float32), b.astype(np.float32), scale)
    return parts


def write_peft(
    folder: Path, parts: dict[str, LowRank], config: dict[str, Any], prefix: str = "base_model.model."
) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    tensors: dict[str, F32] = {}
    for name, part in parts.items():
        module = prefix + hf_name(name).removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = part.a, part.b
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def write_adapter_gguf(path: Path, parts: dict[str, LowRank], spec: ModelSpec, alpha: float, **keys: Any) -> Path:
    halves: dict[str, list[F32]] = {}
    for name, part in parts.items():
        b = part.b
        if ".attn.q." in name or ".attn.k." in name:
            b = halves_to_pairs(b.view(np.uint8), spec.head_dim).view(np.float32)
        for suffix, half in (("a", part.a), ("b", b)):
            halves.setdefault(f"{gguf_name(name)}.lora_{suffix}", []).append(half)
    tensors = []
    for name, found in halves.items():
        values = np.stack(found) if "_exps" in name else found[0]
        rows = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.shape[-1] * 4)
        tensors.append(TensorToWrite(name, values.shape, TYPES["F32"], lambda rows=rows: rows))
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(path, {**metadata, "adapter.lora.alpha": np.float32(alpha), **keys}, tensors)
    return path


def same(found: Adapter, parts: dict[str, LowRank]) -> None:
    assert set(found.parts) == set(parts)
    for name, part in parts.items():
        np.testing.assert_array_equal(found.parts[name].a, part.a)
        np.testing.assert_array_equal(found.parts[name].b, part.b)
        assert found.parts[name].scale == np.float32(part.scale)


@pytest.mark.parametrize("spec", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_the_same_adapter_is_read_from_both_layouts(tmp_path: Path, spec: ModelSpec) -> None:
    parts = random_parts(spec, rank=4, scale=2.0)
    peft = read_adapter(write_peft(tmp_path / "p", parts, {"r": 4, "lora_alpha": 8}), spec)
    gguf = read_adapter(write_adapter_gguf(tmp_path / "a.gguf", parts, spec, 8.0), spec)
    same(peft, parts)
    same(gguf, parts)
    assert peft.digest == gguf.digest
    assert peft.n_bytes == sum(part.a.nbytes + part.b.nbytes for part in parts.values())


def test_the_scale_follows_rank_alpha_patterns_and_rslora(tmp_path: Path) -> None:
    parts = random_parts(LLAMA, rank=4)
    config = {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "alpha_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 1},
    }
    found = read_adapter(write_peft(tmp_path / "p", parts, config), LLAMA).parts
    assert found["blocks.0.attn.q.weight"].scale == 4.0
    assert found["blocks.1.attn.q.weight"].scale == 1.0
    assert found["blocks.1.mlp.up.weight"].scale == 0.5


def test_what_is_not_plain_lora_is_refused(tmp_path: Path) -> None:
    parts = random_parts(LLAMA, rank=4)
    plain = {"r": 4, "lora_alpha": 8}
    for config, named in [
        ({**plain, "use_dora": True}, "DoRA"),
        ({**plain, "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({**plain, "bias": "all"}, "bias"),
        ({**plain, "fan_in_fan_out": True}, "fan_in_fan_out"),
        ({**plain, "peft_type": "IA3"}, "IA3"),
        ({**plain, "r": 8}, "rank is 4"),
        ({"r": 4}, "lora_alpha None"),
        ({**plain, "alpha_pattern": {"(": 1}}, "pattern"),
    ]:
        with pytest.raises(FormatError, match=named):
            read_adapter(write_peft(tmp_path / "p", parts, config), LLAMA)
    with pytest.raises(FormatError, match="no LoRA adapter"):
        read_adapter(write_adapter_gguf(tmp_path / "m.gguf", parts, LLAMA, 8.0, **{"general.type": "model"}), LLAMA)
    with pytest.raises(ModelNotFound):
        read_adapter(tmp_path / "nothing", LLAMA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "empty", LLAMA)
    parts["blocks.0.attn.q.weight"].a[0, 0] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        read_adapter(write_peft(tmp_path / "p", parts, plain), LLAMA)


def test_an_adapter_of_another_base_is_refused_with_what_was_found(tmp_path: Path) -> None:
    plain = {"r": 3, "lora_alpha": 3}
    folder = write_peft(tmp_path / "p", random_parts(replace(LLAMA, n_layers=3)), plain)
    with pytest.raises(TensorMismatch, match=r"blocks\.2\.attn.*another base"):
        read_adapter(folder, LLAMA)
    folder = write_peft(tmp_path / "q", random_parts(replace(LLAMA, hidden_dim=128)), plain)
    with pytest.raises(TensorMismatch, match=r"64 x 128, the model's is 64 x 96"):
        read_adapter(folder, LLAMA)
    folder = write_peft(tmp_path / "r", random_parts(LLAMA), plain, prefix="base_model.model.transformer.")
    with pytest.raises(TensorMismatch, match="28 of 28 tensors match no module"):
        read_adapter(folder, LLAMA)
    with pytest.raises(TensorMismatch, match="another base"):
        read_adapter(write_peft(tmp_path / "s", random_parts(MIXTRAL), plain), LLAMA)
