"""Meta's own checkpoints: `params.json` beside one or several `consolidated.*.pth`.

Source: meta-llama/llama and meta-llama/llama-models. Several files are the shards of a model that
ran on several devices: every file holds a piece of every matrix. Query, key, value, gate, up and
output matrices are cut by rows, the others by columns; the embedding by columns in Llama 1 and 2, by
rows in Llama 3; norms are the same in all. Pairs of rotary rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vitral.errors import FormatError, TensorMismatch
from vitral.formats.canonical import Checkpoint, canonical
from vitral.formats.dialect_params import spec_from_meta
from vitral.formats.json_text import read_object
from vitral.formats.mapping import canonical_from_meta, is_ignored
from vitral.formats.pickle import read_torch
from vitral.formats.weights import U8, Tensor

__all__ = ["open_meta"]

_CUT_BY_ROWS = (".wq.weight", ".wk.weight", ".wv.weight", ".w1.weight", ".w3.weight", "output.weight")
_CUT_BY_COLUMNS = (".wo.weight", ".w2.weight")


def open_meta(path: Path, params_file: Path, files: Sequence[Path]) -> Checkpoint:
    """Open a checkpoint of which `files` are the shards in their order.

    Raises TensorMismatch where shards do not fit together, UnsafeFile for a pickle with other
    things than tensors.
    """
    params = read_object(params_file)
    shards = [read_torch(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        for name in shards[0].tensors.keys() ^ shard.tensors.keys():
            raise TensorMismatch(f"tensor {name!r} is in one of {files[0].name} and {file.name} but not in the other")
    dim = params.get("dim")
    stored = {
        name: _joined(name, [shard.tensors[name] for shard in shards], dim)
        for name in shards[0].tensors
        if not is_ignored(name)
    }
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in stored or len(stored[name].shape) != 2:
            raise TensorMismatch(f"{path} has no matrix {name}, which a checkpoint of Meta's begins with")
    if all("output.weight" in shard.same_as for shard in shards):
        del stored["output.weight"]
    vocab_size, hidden_dim = (
        stored["tok_embeddings.weight"].shape[0],
        stored["layers.0.feed_forward.w1.weight"].shape[0],
    )
    spec = spec_from_meta(params, vocab_size, hidden_dim, "output.weight" not in stored)
    return Checkpoint(path, "meta", spec, canonical(stored, canonical_from_meta, spec, pairs=True), params)


def _joined(name: str, pieces: list[Tensor], dim: object) -> Tensor:
    """One tensor from its piece in each shard."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if any((piece.shape, piece.type) != (first.shape, first.type) for piece in pieces):
        raise TensorMismatch(f"tensor {name!r} has different shapes or types in the shards; do they belong together?")
    if len(first.shape) == 1:
        return Tensor(name, first.type, first.shape, partial(_equal, name, pieces))
    by_rows = name.endswith(_CUT_BY_ROWS) or (name == "tok_embeddings.weight" and first.shape[1] == dim)
    if not by_rows and not name.endswith((*_CUT_BY_COLUMNS, "tok_embeddings.weight")):
        raise TensorMismatch(f"tensor {name!r} is none that Meta cuts into shards; it would be left unused")
    axis = 0 if by_rows else 1
    shape = tuple(n * len(pieces) if i == axis else n for i, n in enumerate(first.shape))
    return Tensor(name, first.type, shape, partial(_concatenated, pieces, axis))


def _concatenated(pieces: list[Tensor], axis: int) -> U8:
    return np.concatenate([piece.raw() for piece in pieces], axis=axis)


def _equal(name: str, pieces: list[Tensor]) -> U8:
    data = pieces[0].raw()
    if any(not np.array_equal(data, piece.raw()) for piece in pieces[1:]):
        raise FormatError(f"tensor {name!r} should be the same in every shard, and is not; do they belong together?")
    return data
