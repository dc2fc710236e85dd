"""From any readable layout to GGUF or safetensors, in the same types or quantised, one tensor at a time.

Values are the same wherever the type stays. What GGUF wants as float32 (gains, router) becomes that;
quantised tensors become float32 in safetensors, which has no such types. The tokenizer comes along:
from GGUF to GGUF as it stands, else as `tokenizer` gives it (`vitral.tokenizer.export` makes it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitral.errors import FormatError
from vitral.formats import rows
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.dialect_gguf import gguf_metadata, rope_factors
from vitral.formats.dialect_hf import hf_config
from vitral.formats.gguf import GgufFile
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.imatrix import Imatrix
from vitral.formats.mapping import gguf_name, hf_name
from vitral.formats.mixes import FileType, Planned, file_type, plan_types
from vitral.formats.quantize import TensorError, encode, quantize_tensor
from vitral.formats.quants import TYPES, TypeInfo, WeightType
from vitral.formats.safetensors import TYPES_ALLOWED, ToWrite, write_safetensors
from vitral.formats.weights import U8, Tensor, Weights
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

__all__ = ["TokenizerFiles", "convert"]

Progress = Callable[[int, int], object]
"""Called with tensors done and tensors in all."""

_CARRIED_FILES = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_LARGEST_CARRIED = 64 << 20
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as each layout wants it: GGUF keys, and files of a folder by name."""

    gguf: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def convert(
    src: Path | Checkpoint,
    dst: Path,
    layout: Literal["gguf", "safetensors"] = "gguf",
    type: str | None = None,
    importance: Imatrix | None = None,
    progress: Progress | None = None,
    tokenizer: TokenizerFiles | None = None,
    shard_bytes: int = 5 << 30,
    split_bytes: int | None = None,
    pure: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> list[TensorError]:
    """Write the model at `src`, or one that is open, to the file (gguf) or folder (safetensors) `dst`.

    `type` is a file type of `mixes.py` (F16, Q8_0, Q4_K_M ...) for GGUF, one of F32, F16, BF16 for
    safetensors; None keeps the types. `pure` gives all matrices the file type's one weight type.
    `importance` says which columns of a matrix count for more; matrices that it does not name are
    rounded with all columns alike. `split_bytes` divides a GGUF model over files of so many bytes,
    `shard_bytes` a safetensors one. `notes` are further metadata, such as where the model
    comes from (`vitral.provenance.lineage`). Returns the error of each tensor, in the order written. Raises
    FormatError for what cannot be written, and what `open_checkpoint` raises.
    """
    checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(Path(src))
    dst = Path(dst)
    if dst.exists() and dst.resolve() == checkpoint.path.resolve():
        raise FormatError(f"{dst} is the model itself; give another path")
    if layout == "gguf":
        wanted = None if type is None else _Wanted(file_type(type), pure, importance)
        return _to_gguf(checkpoint, dst, wanted, progress, tokenizer, split_bytes, notes or {})
    if layout == "safetensors":
        return _to_safetensors(checkpoint, dst, type, progress, tokenizer, shard_bytes, notes or {})
    raise FormatError(f"layout {layout!r} is not written; allowed: gguf, safetensors")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How a model is to be quantised."""

    kind: FileType
    pure: bool
    importance: Imatrix | None


@dataclass
class _Work:
    """Reads tensors in their new type, and notes what each step cost."""

    importance: Mapping[str, F32]
    progress: Progress | None
    total: int
    errors: list[TensorError] = field(default_factory=list)

    def read(self, tensor: Tensor, wanted: WeightType, fallback: WeightType | None = None) -> U8:
        """The rows of a tensor in the type `wanted`, which stands in for `fallback` where that does not fit."""
        if wanted == tensor.type.name:
            raw = tensor.raw()
            error = TensorError(tensor.name, wanted, tensor.shape, tensor.type.bits_per_weight, 0.0, 0.0, 0.0)
        elif wanted == "F32" or (wanted in TYPES_ALLOWED and not np.isfinite(tensor.dequantize()).all()):
            raw = encode(wanted, np.atleast_2d(tensor.dequantize()))
            error = TensorError(tensor.name, wanted, tensor.shape, TYPES[wanted].bits_per_weight, 0.0, 0.0, 0.0)
        else:
            raw, error = quantize_tensor(
                tensor.dequantize(), wanted, self.importance.get(tensor.name), name=tensor.name, fallback_from=fallback
            )
        if tensor.type.block > 1 and TYPES[wanted].block > 1 and wanted != tensor.type.name:
            error = replace(error, requantised=True)
        self.errors.append(error)
        if self.progress is not None:
            self.progress(len(self.errors), self.total)
        return raw


# --- GGUF -------------------------------------------------------------------------------------


def _to_gguf(
    checkpoint: Checkpoint,
    dst: Path,
    wanted: _Wanted | None,
    progress: Progress | None,
    tokenizer: TokenizerFiles | None,
    split_bytes: int | None,
    notes: Mapping[str, Any],
) -> list[TensorError]:
    spec, weights = checkpoint.spec, checkpoint.weights
    plan = _planned(spec, weights, wanted)
    importance = wanted.importance.means() if wanted and wanted.importance else {}
    _check_importance(weights, importance)
    work = _Work(importance, progress, len(weights))
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(gguf_name(name), []).append(name)
    tensors = []
    factors = rope_factors(spec)
    if factors is not None:
        tensors.append(TensorToWrite("rope_freqs.weight", factors.shape, TYPES["F32"], lambda: factors.view(np.uint8)))
    for foreign, names in groups.items():
        some = [weights.take(name) for name in names]
        kind, fallback = _gguf_type(some, [plan[name] for name in names])
        shape = some[0].shape if foreign.find("_exps.") < 0 else (len(some), *some[0].shape)
        tensors.append(TensorToWrite(foreign, shape, kind, _rows(work, some, kind.name, fallback, spec.head_dim)))
    weights.finish()
    dst.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(dst, {**_metadata(checkpoint, wanted, tensors, tokenizer), **notes}, tensors, split_bytes=split_bytes)
    return work.errors


def _planned(spec: ModelSpec, weights: Weights, wanted: _Wanted | None) -> dict[str, Planned]:
    if wanted is None:
        return {name: Planned(tensor.type.name) for name, tensor in weights.items()}
    return plan_types(spec, wanted.kind.name, pure=wanted.pure, importance=wanted.importance is not None)


def _check_importance(weights: Weights, importance: Mapping[str, F32]) -> None:
    for name, values in importance.items():
        if name not in weights or values.shape != weights[name].shape[1:]:
            raise FormatError(
                f"the importance has {values.size} numbers for {name}, which this model has not in that width; "
                "measure it with the same model"
            )


def _gguf_type(some: Sequence[Tensor], planned: Sequence[Planned]) -> tuple[TypeInfo, WeightType | None]:
    """The type of a tensor of a GGUF file (its experts share one), and the one that its rows forbade."""
    first = some[0]
    if len(first.shape) == 1 or first.name.endswith(".router.weight"):
        return TYPES["F32"], None
    one = planned[0] if len(set(planned)) == 1 else Planned("F32")
    return TYPES[one.type], one.fallback_from


def _rows(
    work: _Work, some: Sequence[Tensor], wanted: WeightType, fallback: WeightType | None, head_dim: int
) -> Callable[[], U8]:
    def read() -> U8:
        parts = [work.read(tensor, wanted, fallback) for tensor in some]
        if some[0].name.endswith((".attn.q.weight", ".attn.k.weight")):
            return rows.halves_to_pairs(np.ascontiguousarray(parts[0]), head_dim)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read


def _metadata(
    checkpoint: Checkpoint,
    wanted: _Wanted | None,
    tensors: Sequence[TensorToWrite],
    tokenizer: TokenizerFiles | None,
) -> dict[str, Any]:
    """Keys of the new file: what describes the model and its tokenizer, and what it was made from."""
    carried: dict[str, Any] = {}
    if checkpoint.layout == "gguf":
        old = GgufFile.open(checkpoint.path).exact_metadata()
        carried = {key: value for key, value in old.items() if not key.startswith(("llama.", "vitral.", "split."))}
    elif tokenizer is not None:
        carried = dict(tokenizer.gguf)
    found = {**gguf_metadata(checkpoint.spec), **carried}
    found["general.architecture"] = "llama"
    found.setdefault("general.name", checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.name)
    if wanted is not None:
        found["general.file_type"] = wanted.kind.number
        if wanted.importance is not None:
            found |= _provenance(wanted.importance)
    else:
        found.setdefault("general.file_type", _commonest(tensors).number)
    if any(tensor.type.block > 1 for tensor in tensors):
        found["general.quantization_version"] = 2
    else:
        found.pop("general.quantization_version", None)
    return found


def _provenance(importance: Imatrix) -> dict[str, Any]:
    """What guided the rounding, under the keys that llama.cpp gives it."""
    facts: dict[str, Any] = {
        "quantize.imatrix.entries_count": len(importance.sums),
        "quantize.imatrix.chunks_count": importance.n_windows,
    }
    if importance.datasets:
        facts["quantize.imatrix.dataset"] = importance.datasets[0]
    return facts


def _commonest(tensors: Sequence[TensorToWrite]) -> FileType:
    """The file type whose weight type most bytes have; of several, the one that its bare name means."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.n_bytes
    return file_type(max(sizes, key=sizes.__getitem__))


# --- safetensors ------------------------------------------------------------------------------


def _to_safetensors(
    checkpoint: Checkpoint,
    dst: Path,
    type: str | None,
    progress: Progress | None,
    tokenizer: TokenizerFiles | None,
    shard_bytes: int,
    notes: Mapping[str, Any],
) -> list[TensorError]:
    if type is not None and type not in TYPES_ALLOWED:
        raise FormatError(f"safetensors of type {type!r}; allowed: {', '.join(TYPES_ALLOWED)}, or none to keep values")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise FormatError(f"{dst} is there and not an empty folder; give a new one")
    spec, weights = checkpoint.spec, checkpoint.weights
    work = _Work({}, progress, len(weights))
    todo: list[ToWrite] = []
    for name in weights:
        tensor = weights.take(name)
        wanted = type or (tensor.type.name if tensor.type.block == 1 else "F32")
        todo.append((hf_name(name), wanted, tensor.shape, _reader(work, tensor, wanted)))  # type: ignore[arg-type]
    weights.finish()
    kinds = [kind for _, kind, shape, _ in todo if len(shape) == 2]
    config = hf_config(spec, _DTYPES[max(set(kinds), key=kinds.count)])
    carried = _carried(checkpoint, tokenizer)
    dst.mkdir(parents=True, exist_ok=True)
    write_safetensors(dst, todo, shard_bytes, {key: str(value) for key, value in notes.items()})
    for file_name, data in carried.items():
        (dst / file_name).write_bytes(data)
    (dst / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return work.errors


def _reader(work: _Work, tensor: Tensor, wanted: WeightType) -> Callable[[], U8]:
    return lambda: work.read(tensor, wanted, wanted)


def _carried(checkpoint: Checkpoint, tokenizer: TokenizerFiles | None) -> dict[str, bytes]:
    """The files of the tokenizer: those of the folder as they are, else what `tokenizer` gives."""
    found: dict[str, bytes] = {}
    if checkpoint.path.is_dir():
        for name in _CARRIED_FILES:
            file = checkpoint.path / name
            if file.is_file() and file.stat().st_size <= _LARGEST_CARRIED:
                found[name] = file.read_bytes()
    return found or dict(tokenizer.files if tokenizer is not None else {})
