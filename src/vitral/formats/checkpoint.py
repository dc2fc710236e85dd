"""Open any readable checkpoint: what it is, its architecture, its weights, its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, TensorMismatch
from vitral.formats import mapping, rows
from vitral.formats.gguf import GgufFile
from vitral.formats.quants import TypeInfo
from vitral.formats.weights import Tensor, Weights
from vitral.model.spec import ModelSpec

__all__ = ["Checkpoint", "open_gguf"]

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its layout, architecture, weights (still on disk) and free metadata."""

    path: Path
    layout: str
    spec: ModelSpec
    weights: Weights
    metadata: Mapping[str, Any]


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one."""
    file = GgufFile.open(path)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None and file.metadata.get("general.architecture") == "llama":
        raise TensorMismatch(f"{path} has no tensor token_embd.weight: it may hold a vocabulary alone")
    factors = file.tensors.get("rope_freqs.weight")
    spec = mapping.spec_from_gguf(
        file.metadata,
        embedding.shape[0] if embedding else 0,
        "output.weight" not in file.tensors,
        tuple(factors.raw().view("<f4").ravel().tolist()) if factors is not None else None,
    )
    stored = {
        name: Tensor(name, tensor.type, tensor.shape, tensor.raw)
        for name, tensor in file.tensors.items()
        if name not in mapping.GGUF_IGNORED
    }
    return Checkpoint(path, "gguf", spec, canonical(stored, mapping.canonical_from_gguf, spec, True), file.metadata)


def canonical(
    stored: Mapping[str, Tensor], rename: Callable[[str], str | None], spec: ModelSpec, pairs: bool
) -> Weights:
    """Foreign tensors as Weights: renamed, experts unstacked, rotary rows brought to halves if `pairs`."""
    found: dict[str, Tensor] = {}
    for foreign, tensor in stored.items():
        ours = rename(foreign)
        if ours is None:
            raise TensorMismatch(f"tensor {foreign!r} is not one of this architecture's; it would be left unused")
        for name, type_, shape, read in _unstacked(ours, tensor, spec):
            if pairs and name.endswith((".attn.q.weight", ".attn.k.weight")):
                read = partial(_to_halves, read, shape[0], spec.head_dim)
            if name in found:
                raise TensorMismatch(f"tensor {foreign!r} gives {name}, which another tensor gave before")
            found[name] = Tensor(name, type_, shape, read)
    return Weights(spec, found)


Piece = tuple[str, TypeInfo, tuple[int, ...], Callable[[], U8]]


def _unstacked(name: str, tensor: Tensor, spec: ModelSpec) -> list[Piece]:
    """A tensor as it is, or one that stacks experts (E, rows, columns) as one for each expert."""
    if "*" not in name:
        return [(name, tensor.type, tensor.shape, tensor.read)]
    if spec.moe is None or len(tensor.shape) != 3 or tensor.shape[0] != spec.moe.n_experts:
        wanted = spec.moe.n_experts if spec.moe else "no"
        raise TensorMismatch(f"tensor {tensor.name!r} has shape {tensor.shape}; the configuration has {wanted} experts")
    parts = ["gate", "up"] if "gate+up" in name else [""]
    each = tensor.shape[1] // len(parts)
    pieces: list[Piece] = []
    for e in range(tensor.shape[0]):
        for p, part in enumerate(parts):
            one = name.replace("*", str(e)).replace("gate+up", part)
            start = e * tensor.shape[1] + p * each
            pieces.append((one, tensor.type, (each, tensor.shape[2]), partial(_some_rows, tensor, start, each)))
    return pieces


def _some_rows(tensor: Tensor, start: int, n: int) -> U8:
    return tensor.read().reshape(tensor.shape[0] * tensor.shape[1], -1)[start : start + n]


def _to_halves(read: Callable[[], U8], n_rows: int, head_dim: int) -> U8:
    if n_rows % head_dim:
        raise FormatError(f"{n_rows} query or key rows are not whole heads of {head_dim}")
    return rows.pairs_to_halves(read().reshape(n_rows, -1), head_dim)
