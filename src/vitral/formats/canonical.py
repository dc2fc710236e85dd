"""From a layout's own tensors to the canonical ones: renamed, unstacked, rows in one order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitral.errors import FormatError, TensorMismatch
from vitral.formats import rows
from vitral.formats.quants import TypeInfo
from vitral.formats.weights import U8, Tensor, Weights
from vitral.model.spec import ModelSpec

__all__ = ["Checkpoint", "canonical"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its layout, architecture, weights (still on disk) and free metadata.

    `path` is what was opened. `metadata` is the GGUF key/values, or the layout's own configuration.
    """

    path: Path
    layout: str
    spec: ModelSpec
    weights: Weights
    metadata: Mapping[str, Any]


def canonical(
    stored: Mapping[str, Tensor], rename: Callable[[str], str | None], spec: ModelSpec, pairs: bool
) -> Weights:
    """Foreign tensors as Weights: renamed, experts unstacked, rotary rows brought to halves if `pairs`.

    In a name that `rename` gives, `*` stands for all experts, `gate+up` for both matrices one after
    the other, and `^T` says that rows and columns are exchanged. Raises TensorMismatch for a tensor
    that this architecture has not, and for one that is missing.
    """
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
    if spec.tied_embeddings and "unembed.weight" in found:
        _drop_copy(found)
    return Weights(spec, found)


def _drop_copy(found: dict[str, Tensor]) -> None:
    """A file with tied embeddings may store the matrix twice; it must then be the same."""
    copy, embedding = found.pop("unembed.weight"), found["embed.weight"]
    if copy.type != embedding.type or not np.array_equal(copy.raw(), embedding.raw()):
        raise TensorMismatch(
            "the configuration says that embedding and unembedding are one matrix (tie_word_embeddings), "
            "but the file holds two that differ; set it to false if both are meant"
        )


Piece = tuple[str, TypeInfo, tuple[int, ...], Callable[[], U8]]


def _unstacked(name: str, tensor: Tensor, spec: ModelSpec) -> list[Piece]:
    """A tensor as it is, or one that stacks experts, (E, rows, columns) or (E x rows, columns), as one for each."""
    if "*" not in name:
        return [(name, tensor.type, tensor.shape, tensor.read)]
    wanted = spec.moe.n_experts if spec.moe else 0
    shape = tensor.shape
    if len(shape) == 2 and wanted and shape[0] % wanted == 0:
        shape = (wanted, shape[0] // wanted, shape[1])
    if len(shape) != 3 or shape[0] != wanted:
        raise TensorMismatch(f"tensor {tensor.name!r} has shape {tensor.shape}; the configuration has {wanted} experts")
    parts = ["gate", "up"] if "gate+up" in name else [""]
    each = shape[1] // len(parts)
    pieces: list[Piece] = []
    for e in range(wanted):
        for p, part in enumerate(parts):
            one = name.replace("*", str(e)).replace("gate+up", part)
            read = partial(_some_rows, tensor, e * shape[1] + p * each, each, shape[2])
            if "^T" in one:
                turned = partial(_transposed, read, tensor.type, each, shape[2])
                pieces.append((one.replace("^T", ""), tensor.type, (shape[2], each), turned))
            else:
                pieces.append((one, tensor.type, (each, shape[2]), read))
    return pieces


def _some_rows(tensor: Tensor, start: int, n: int, columns: int) -> U8:
    row = columns // tensor.type.block * tensor.type.bytes_per_block
    return tensor.read().reshape(-1)[start * row : (start + n) * row]


def _transposed(read: Callable[[], U8], type_: TypeInfo, n_rows: int, columns: int) -> U8:
    if type_.block != 1:
        raise FormatError(f"a transposed matrix of type {type_.name} cannot be turned; convert it as floats")
    values = np.ascontiguousarray(read()).view(f"V{type_.bytes_per_block}").reshape(n_rows, columns)
    return np.ascontiguousarray(values.T).view(np.uint8)


def _to_halves(read: Callable[[], U8], n_rows: int, head_dim: int) -> U8:
    if n_rows % head_dim:
        raise FormatError(f"{n_rows} query or key rows are not whole heads of {head_dim}")
    return rows.pairs_to_halves(read().reshape(n_rows, -1), head_dim)
