"""Adapters as files: PEFT's folder, read and written, and llama.cpp's GGUF adapter, written.

Experts are written plainly, one pair of matrices for each (`block_sparse_moe.experts.E.w1`). PEFT's own
layout of fused experts is read too: A is (E r, in) with the expert as the slow index, B is (out, r E) with
the expert as the fast one, and gate and up share an A.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitral.errors import AdapterMismatch, NumericalError
from vitral.formats import rows
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.json_text import read_object
from vitral.formats.mapping import canonical_from_hf, gguf_name, hf_name
from vitral.formats.quants import TYPES
from vitral.formats.safetensors import ToWrite, read_safetensors, write_safetensors
from vitral.model.law import F32
from vitral.tune.adapters import Dora, Lora, adapters_of
from vitral.tune.forward import Transformer
from vitral.tune.lora_plan import LoraPlan

__all__ = ["data_of", "load_adapter", "save_gguf_adapter", "save_peft"]

_WEIGHTS, _CONFIG, _RECORD = "adapter_model.safetensors", "adapter_config.json", "vitral.json"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
_FUSED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts(\.base_layer)?")
_UNREAD = ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "trainable_token_indices")
_KNOWN_TYPES = ("LORA",)


def save_peft(model: Transformer, plan: LoraPlan, folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write the model's adapters as PEFT reads them; `record` goes beside them as vitral.json.

    Raises NumericalError, and writes nothing, if a number is not finite.
    """
    adapters = _finite(adapters_of(model))
    todo: list[ToWrite] = []
    for name, adapter in adapters.items():
        key = "base_model.model." + hf_name(name + ".weight").removesuffix(".weight")
        todo += [_f32(f"{key}.lora_A.weight", adapter.a), _f32(f"{key}.lora_B.weight", adapter.b)]
        if isinstance(adapter, Dora):
            todo.append(_f32(f"{key}.lora_magnitude_vector", adapter.magnitude))
    targets = sorted({hf_name(name + ".weight").removesuffix(".weight") for name in adapters})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(record.get("base", "")),
        "r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": plan.dropout,
        "use_rslora": plan.kind == "rslora",
        "use_dora": plan.kind == "dora",
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        [file] = write_safetensors(Path(staging), todo, 1 << 62)
        file.replace(folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / _RECORD).write_text(json.dumps(dict(record), indent=2, default=str) + "\n")
    return [folder / _WEIGHTS, folder / _CONFIG, folder / _RECORD]


def load_adapter(model: Transformer, folder: Path, base_digest: str | None = None) -> LoraPlan:
    """Put the adapter of a PEFT folder on the model, trainable; returns its plan.

    Every tensor must find its product and fit it. Where the folder says what it was trained on
    (vitral.json) and `base_digest` is given, the two must be equal. Raises AdapterMismatch.
    """
    if adapters_of(model):
        raise AdapterMismatch("the model has adapters already; merge them or load it again")
    config = _config(folder)
    _check_base(folder, base_digest)
    found = _factors(folder, model, config["r"])
    plan = _plan(config, found)
    products = dict(model.linears())
    made: dict[str, Lora] = {}
    for name, parts in found.items():
        a, b = _pair(folder, name, parts, plan)
        weight = products[name].weight
        if b.shape[0] != weight.shape[0] or a.shape[1] != weight.shape[1] or a.shape[0] != b.shape[1]:
            raise AdapterMismatch(
                f"{folder}: the adapter of {name} is {tuple(b.shape)} x {tuple(a.shape)}; the product is "
                f"{tuple(weight.shape)}: it was made for another model"
            )
        made[name] = (Dora if plan.kind == "dora" else Lora)(weight.shape[0], weight.shape[1], plan)
        made[name].a, made[name].b = nn.Parameter(a), nn.Parameter(b)
        if plan.kind == "dora":
            made[name].magnitude = nn.Parameter(parts["magnitude_vector"].reshape(-1))
    model.requires_grad_(False)
    for name, adapter in made.items():
        products[name].adapter = adapter
    return plan


def data_of(folder: Path) -> list[dict[str, str]]:
    """What the adapter in a PEFT folder of ours was trained on: path, SHA-256, licence; empty where it does not say."""
    if not (folder / _RECORD).is_file():
        return []
    record = read_object(folder / _RECORD)
    licence = {"licence": record["data_licence"]} if record.get("data_licence") else {}
    return [licence | {str(key): str(value) for key, value in each.items()} for each in record.get("data", ())]


def save_gguf_adapter(model: Transformer, plan: LoraPlan, path: Path, record: Mapping[str, Any]) -> None:
    """Write the adapters as llama.cpp's `--lora` reads them. DoRA has no place there: AdapterMismatch."""
    if plan.kind == "dora":
        raise AdapterMismatch("a GGUF adapter holds A and B alone; merge a DoRA adapter instead: --as gguf")
    adapters = _finite(adapters_of(model))
    groups: dict[str, list[str]] = {}
    for name in adapters:
        groups.setdefault(gguf_name(name + ".weight"), []).append(name)
    tensors: list[TensorToWrite] = []
    for foreign, names in groups.items():
        for letter in ("a", "b"):
            values = _stacked(model, adapters, foreign, names, letter)
            read = partial(np.ascontiguousarray, values.reshape(-1, values.shape[-1]).view(np.uint8))
            tensors.append(TensorToWrite(f"{foreign}.lora_{letter}", values.shape, TYPES["F32"], read))
    metadata = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        # llama.cpp scales by alpha / rank; rsLoRA scales otherwise, so alpha says what makes it equal
        "adapter.lora.alpha": float(plan.scale * plan.rank),
        "vitral.record": json.dumps(dict(record), default=str),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, tensors)


def _stacked(model: Transformer, adapters: Mapping[str, Lora], foreign: str, names: list[str], letter: str) -> F32:
    """One matrix, or those of all experts (E, ...), zeros where an expert has no adapter."""
    head = re.sub(r"experts\.\d+\.", "experts.{}.", names[0])
    spec = model.spec
    if "_exps." not in foreign:
        value = _numpy(getattr(adapters[names[0]], letter))
        if letter == "b" and names[0].endswith((".attn.q", ".attn.k")):
            value = rows.halves_to_pairs(value.view(np.uint8), spec.head_dim).view(np.float32)
        return value
    assert spec.moe is not None
    shape = tuple(getattr(adapters[names[0]], letter).shape)
    each = [adapters.get(head.format(e)) for e in range(spec.moe.n_experts)]
    return np.stack([np.zeros(shape, np.float32) if one is None else _numpy(getattr(one, letter)) for one in each])


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise AdapterMismatch(f"{folder} is no adapter: {_CONFIG} and {_WEIGHTS} are wanted in one folder")
    config = dict(read_object(folder / _CONFIG))
    if config.get("peft_type") not in _KNOWN_TYPES:
        raise AdapterMismatch(f"{folder} is an adapter of type {config.get('peft_type')!r}; allowed: LORA")
    for key in _UNREAD:
        if config.get(key):
            raise AdapterMismatch(f"{folder}: {key} is {str(config[key])[:60]}; adapters with it are not read")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise AdapterMismatch(f"{folder} trains biases; these models have none")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterMismatch(f"{folder}: r is {rank!r} and lora_alpha {alpha!r}; two numbers are wanted")
    return config


def _check_base(folder: Path, base_digest: str | None) -> None:
    record = dict(read_object(folder / _RECORD)) if (folder / _RECORD).is_file() else {}
    trained_on = record.get("base_digest")
    if base_digest is not None and trained_on is not None and trained_on != base_digest:
        raise AdapterMismatch(
            f"{folder} was trained on weights {str(trained_on)[:12]} ({record.get('base', 'unnamed')}); this model is "
            f"{base_digest[:12]}: use the same file, quantised the same way"
        )


def _factors(folder: Path, model: Transformer, rank: int) -> dict[str, dict[str, Tensor]]:
    """A, B and magnitude of each product, by its name."""
    products = dict(model.linears())
    found: dict[str, dict[str, Tensor]] = {}
    for key, stored in read_safetensors(folder / _WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterMismatch(f"{folder} holds {key!r}, which is no part of a LoRA adapter of these models")
        place, part = match[1], match[2]
        value = torch.tensor(stored.dequantize())
        for name, piece in _places(place, part, value, model, rank):
            if name not in products:
                raise AdapterMismatch(f"{folder} adapts {place!r}, which this model has not")
            found.setdefault(name, {})[part] = piece
    if not found:
        raise AdapterMismatch(f"{folder} adapts nothing")
    return found


def _places(place: str, part: str, value: Tensor, model: Transformer, rank: int) -> list[tuple[str, Tensor]]:
    fused = _FUSED.fullmatch(place)
    if fused is None:
        name = canonical_from_hf(place + ".weight")
        return [((name or place).removesuffix(".weight"), value)]
    n = model.spec.moe.n_experts if model.spec.moe is not None else 0
    side = value.shape[0] if part == "A" else value.shape[1]
    if n == 0 or value.ndim != 2 or part == "magnitude_vector" or side % n:
        raise AdapterMismatch(
            f"{place!r} is an adapter of fused experts of shape {tuple(value.shape)}; this model has {n}"
        )
    prefix = f"blocks.{fused[1]}.mlp.experts."
    names = ["gate", "up"] if fused[2] else ["down"]
    pieces: list[tuple[str, Tensor]] = []
    for e in range(n):
        one = value.view(n, side // n, -1)[e] if part == "A" else value.view(len(value), side // n, n)[:, :, e]
        for i, name in enumerate(names):
            half = one if part == "A" else one.chunk(len(names))[i]
            pieces.append((f"{prefix}{e}.{name}", half.contiguous().clone()))
    return pieces


def _plan(config: Mapping[str, Any], found: Mapping[str, object]) -> LoraPlan:
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if config.get("use_dora") and config.get("use_rslora"):
        raise AdapterMismatch("an adapter with both use_dora and use_rslora is not read; one of them is")
    targets = tuple(dict.fromkeys(name.rsplit(".", 1)[1] for name in found))
    return LoraPlan(config["r"], float(config["lora_alpha"]), float(config.get("lora_dropout") or 0), kind, targets)  # type: ignore[arg-type]


def _pair(folder: Path, name: str, parts: Mapping[str, Tensor], plan: LoraPlan) -> tuple[Tensor, Tensor]:
    wanted = {"A", "B"} | ({"magnitude_vector"} if plan.kind == "dora" else set())
    if set(parts) != wanted:
        raise AdapterMismatch(f"{folder}: the adapter of {name} has {sorted(parts)}; wanted are {sorted(wanted)}")
    for part, value in parts.items():
        if not bool(value.isfinite().all()):
            raise NumericalError(f"{folder}: {part} of {name} holds numbers that are not finite; it was saved broken")
    return parts["A"], parts["B"]


def _finite(adapters: dict[str, Lora]) -> dict[str, Lora]:
    if not adapters:
        raise AdapterMismatch("the model has no adapter to write; full tuning is exported as a model")
    for name, adapter in adapters.items():
        if not all(bool(p.isfinite().all()) for p in adapter.parameters()):
            raise NumericalError(f"the adapter of {name} holds numbers that are not finite; it is not written")
    return adapters


def _numpy(value: Tensor) -> F32:
    array: F32 = np.ascontiguousarray(value.detach().float().numpy())
    return array


def _f32(name: str, value: Tensor) -> ToWrite:
    array = _numpy(value)
    return name, "F32", array.shape, lambda: np.atleast_2d(array).view(np.uint8)
