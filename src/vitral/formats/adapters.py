"""LoRA adapters (arXiv 2106.09685) from PEFT folders and from GGUF files, under our names, checked against a base.

PEFT: `adapter_config.json` beside `adapter_model.safetensors`. GGUF: `general.type` is `adapter`, as
llama.cpp's `convert_lora_to_gguf.py` writes it. What would change the result and is not plain LoRA
(DoRA, trained biases, other modules saved whole) is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitral.errors import FormatError, ModelNotFound, TensorMismatch
from vitral.formats.gguf import read_gguf
from vitral.formats.json_text import parse_object, read_object
from vitral.formats.mapping import canonical_from_gguf, canonical_from_hf
from vitral.formats.metadata_text import first_text
from vitral.formats.quants import decode
from vitral.formats.rows import pairs_to_halves
from vitral.formats.safetensors import read_safetensors
from vitral.model.law import F32, LowRank, Quantised
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec

__all__ = ["Adapter", "TrainedOn", "read_adapter", "trained_on"]

_MOST_RANK = 1024
_PEFT_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_GGUF_KEY = re.compile(r"(.+\.weight)\.lora_([ab])")
# Settings under which the product is another than scale * B A; absent, null, false or empty they say nothing.
_REFUSED = {
    "use_dora": "DoRA scales the whole matrix anew",
    "use_qalora": "QA-LoRA pools the inputs",
    "fan_in_fan_out": "the matrices are exchanged",
    "modules_to_save": "whole modules are saved beside the adapter",
    "lora_bias": "the adapter has biases",
    "layer_replication": "layers are repeated",
    "target_parameters": "parameters that are no modules",
    "trainable_token_indices": "single embeddings are trained",
    "alora_invocation_tokens": "it is switched on by tokens",
}


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What an adapter says of the model that it was trained on; None or empty for what it leaves out.

    name: a claim, a name or a path. digest, vectors, types: `Weights.digest`, `vectors_digest` and `matrix_types`, as
    Vitral writes them.
    """

    name: str | None = None
    digest: str | None = None
    vectors: str | None = None
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter adds, by the canonical names of the matrices; `digest` is the sha256 (hex) of all of it."""

    path: Path
    parts: Mapping[str, LowRank]
    digest: str
    trained_on: TrainedOn = TrainedOn()

    @property
    def n_bytes(self) -> int:
        """Memory of the parts."""
        return sum(part.a.nbytes + part.b.nbytes for part in self.parts.values())


def read_adapter(path: Path, spec: ModelSpec) -> Adapter:
    """Open an adapter by its content and check its shapes against the model that it is for.

    Raises ModelNotFound where nothing is, FormatError for what is no LoRA adapter, TensorMismatch with what
    was found for one that matches no module or is of other shapes. Whether a model of the same shapes is the one it
    was trained on: `vitral.provenance.bases`.
    """
    if path.is_dir():
        pairs, trained_on = _peft(path)
    elif path.is_file():
        pairs, trained_on = _gguf(path, spec)
    else:
        raise ModelNotFound(f"no adapter at {path}; give a PEFT folder or a GGUF file")
    parts = {name: _checked(path, name, part) for name, part in sorted(pairs.items())}
    _check_base(path, parts, spec)
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name}\0{part.a.shape}\0{part.b.shape}\0{part.scale!r}\0".encode())
        digest.update(part.a.tobytes() + part.b.tobytes())
    return Adapter(path, parts, digest.hexdigest(), trained_on)


def _peft(folder: Path) -> tuple[dict[str, LowRank], TrainedOn]:
    config = _peft_config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FormatError(f"{folder} has no adapter_model.safetensors; save the adapter with safe_serialization")
    halves: dict[str, dict[str, F32]] = {}
    modules: dict[str, str] = {}
    strange = []
    for key, tensor in read_safetensors(file).items():
        match = _PEFT_KEY.fullmatch(key)
        name = canonical_from_hf(f"{match[1]}.weight") if match else None
        if match is None or name is None:
            strange.append(key)
            continue
        halves.setdefault(name, {})[match[2].lower()] = tensor.dequantize()
        modules[name] = match[1]
    _refuse_strange(folder, strange, len(modules))
    parts = {}
    for name, pair in halves.items():
        a, b = _pair(folder, name, pair)
        alpha = _by_pattern(config.get("alpha_pattern"), modules[name], config.get("lora_alpha"))
        rank = _by_pattern(config.get("rank_pattern"), modules[name], config.get("r"))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or rank != a.shape[0]:
            raise FormatError(
                f"{folder}: r is {rank!r} and lora_alpha {alpha!r} for {modules[name]}, whose rank is {a.shape[0]}"
            )
        parts[name] = LowRank(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return parts, _said_in(folder, config)


def trained_on(folder: Path) -> TrainedOn:
    """What a PEFT folder says of its base, whatever kind of adapter it holds. Raises FormatError for no such folder."""
    return _said_in(folder, read_object(folder / "adapter_config.json"))


def _said_in(folder: Path, config: Mapping[str, Any]) -> TrainedOn:
    record = folder / "vitral.json"
    return _trained_on(config.get("base_model_name_or_path"), read_object(record) if record.is_file() else {}, record)


def _trained_on(name: object, record: Mapping[str, Any], where: Path) -> TrainedOn:
    """From the name that the layout has and the record that Vitral writes; FormatError for a record that is none."""
    texts = {key: record.get(key) for key in ("base", "base_digest", "base_vectors")}
    types = record.get("base_types", [])
    wrong = [key for key, value in texts.items() if not isinstance(value, str | None)]
    if wrong or not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        raise FormatError(f"{where}: {', '.join(wrong) or 'base_types'} is no text as Vitral writes it")
    named = name if isinstance(name, str) and name else None
    return TrainedOn(named or texts["base"], texts["base_digest"], texts["base_vectors"], tuple(types))


def _peft_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except OSError:
        raise FormatError(f"{folder} has no adapter_config.json; give the folder that PEFT saved") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{folder}/adapter_config.json is no JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise FormatError(f"{folder} is an adapter of the kind {kind!r:.60}; allowed: LORA")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise FormatError(
                f"{folder}: {key} is {config[key]!r:.60} ({why}); merge the adapter into its base instead"
            )
    if config.get("bias", "none") != "none":
        raise FormatError(f"{folder}: bias is {config['bias']!r:.60}; allowed: none")
    return config


def _by_pattern(patterns: object, module: str, otherwise: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: the first pattern that the module's name ends with."""
    if not isinstance(patterns, dict):
        return otherwise
    for pattern, value in patterns.items():
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                return value
        except re.error as error:
            raise FormatError(f"{pattern!r:.60} of rank_pattern or alpha_pattern is no pattern: {error}") from None
    return otherwise


def _gguf(path: Path, spec: ModelSpec) -> tuple[dict[str, LowRank], TrainedOn]:
    file = read_gguf(path)
    found = {key: file.metadata.get(key) for key in ("general.type", "adapter.type", "adapter.lora.alpha")}
    if found["general.type"] != "adapter" or found["adapter.type"] != "lora":
        raise FormatError(f"{path} is no LoRA adapter: general.type is {found['general.type']!r:.60}")
    alpha = found["adapter.lora.alpha"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number):
        raise FormatError(f"{path}: adapter.lora.alpha is {alpha!r:.60}; a number is needed")
    halves: dict[str, dict[str, F32]] = {}
    strange = []
    for key, tensor in file.tensors.items():
        match = _GGUF_KEY.fullmatch(key)
        name = canonical_from_gguf(match[1]) if match else None
        if match is None or name is None or len(tensor.shape) != (3 if "*" in name else 2):
            strange.append(key)
            continue
        values = decode(tensor.type.name, tensor.raw())
        floats = (values.dequantize() if isinstance(values, Quantised) else values).reshape(tensor.shape)
        stacked = floats if "*" in name else floats[None]
        for number, one in enumerate(stacked):
            halves.setdefault(name.replace("*", str(number)), {})[match[2]] = one
    _refuse_strange(path, strange, len(halves))
    parts = {}
    for name, pair in halves.items():
        a, b = _pair(path, name, pair)
        if re.fullmatch(r"blocks\.\d+\.attn\.[qk]\.weight", name) and len(b) % spec.head_dim == 0:
            b = pairs_to_halves(np.ascontiguousarray(b).view(np.uint8), spec.head_dim).view(np.float32)
        parts[name] = LowRank(a, b, float(alpha) / a.shape[0] if alpha else 1.0)
    record = file.metadata.get("vitral.record")
    kept = parse_object(record.encode(), f"{path}, vitral.record") if isinstance(record, str) else {}
    return parts, _trained_on(_base_in_gguf(file.metadata), kept, path)


def _base_in_gguf(metadata: Mapping[str, Any]) -> str | None:
    """owner/name of the base as llama.cpp's converter writes it, or its name alone."""
    url = first_text(metadata, "general.base_model.0.repo_url")
    if url is not None:
        return "/".join(url.rstrip("/").split("/")[-2:])
    owner, name = (first_text(metadata, f"general.base_model.0.{key}") for key in ("organization", "name"))
    return f"{owner}/{name.replace(' ', '-')}" if owner and name else name


def _pair(path: Path, name: str, pair: Mapping[str, F32]) -> tuple[F32, F32]:
    if set(pair) != {"a", "b"} or any(half.ndim != 2 for half in pair.values()):
        raise FormatError(f"{path}: the adapter of {name} has no two matrices A and B")
    a, b = pair["a"], pair["b"]
    if a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= _MOST_RANK:
        raise FormatError(
            f"{path}: {name} has A {a.shape} and B {b.shape}; allowed: equal ranks from 1 to {_MOST_RANK}"
        )
    return a, b


def _refuse_strange(path: Path, strange: list[str], known: int) -> None:
    if strange:
        some = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise TensorMismatch(
            f"{path}: {len(strange)} of {len(strange) + known} tensors match no module that an adapter can add to: {some}"
        )
    if not known:
        raise TensorMismatch(f"{path} holds no tensors")


def _checked(path: Path, name: str, part: LowRank) -> LowRank:
    if not (np.isfinite(part.a).all() and np.isfinite(part.b).all() and math.isfinite(part.scale)):
        raise FormatError(f"{path}: {name} holds a number that is not finite; the adapter is damaged")
    return LowRank(
        np.ascontiguousarray(part.a, np.float32),
        np.ascontiguousarray(part.b, np.float32),
        float(np.float32(part.scale)),
    )


def _check_base(path: Path, parts: Mapping[str, LowRank], spec: ModelSpec) -> None:
    shapes = tensor_shapes(spec)
    for name, part in parts.items():
        allowed = re.fullmatch(r"blocks\.\d+\.(attn\.[qkvo]|mlp\.(experts\.\d+\.)?(gate|up|down))\.weight", name)
        if allowed is None:
            raise TensorMismatch(f"{path} adds to {name}; adapters can add to attention and feed-forward matrices only")
        found = (part.b.shape[0], part.a.shape[1])
        if name not in shapes:
            raise TensorMismatch(f"{path} adds to {name}, which this model does not have; it was made for another base")
        if shapes[name] != found:
            raise TensorMismatch(
                f"{path}: {name} is {found[0]} x {found[1]}, the model's is {shapes[name][0]} x {shapes[name][1]}; "
                "the adapter was made for another base"
            )
