"""Mistral's own checkpoints: `params.json` beside `consolidated*.safetensors` (or `.pth`, `.pt`).

Source: mistralai/mistral-inference. Several files, if there are, hold different tensors. Names are
Meta's with experts added; pairs of rotary rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitral.errors import TensorMismatch
from vitral.formats.canonical import Checkpoint, canonical
from vitral.formats.dialect_params import spec_from_mistral
from vitral.formats.json_text import read_object
from vitral.formats.mapping import canonical_from_meta, is_ignored
from vitral.formats.pickle import read_torch
from vitral.formats.safetensors import read_safetensors
from vitral.formats.sniff import kind_of
from vitral.formats.weights import Tensor

__all__ = ["open_mistral", "united"]


def open_mistral(path: Path, params_file: Path, files: Sequence[Path]) -> Checkpoint:
    """Open a checkpoint whose tensors are in `files`, each tensor in one of them."""
    params = read_object(params_file)
    stored = united(files)
    spec = spec_from_mistral(params, "output.weight" not in stored)
    return Checkpoint(path, "mistral", spec, canonical(stored, canonical_from_meta, spec, pairs=True), params)


def united(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of all files, without those that repeat the configuration; TensorMismatch for one found twice."""
    stored: dict[str, Tensor] = {}
    for file in files:
        if kind_of(file) == "torch":
            state = read_torch(file)
            found = {name: tensor for name, tensor in state.tensors.items() if name not in state.same_as}
        else:
            found = read_safetensors(file)
        for name, tensor in found.items():
            if name in stored:
                raise TensorMismatch(f"tensor {name!r} stands in {file.name} and in another file of the checkpoint")
            if not is_ignored(name):
                stored[name] = tensor
    return stored
