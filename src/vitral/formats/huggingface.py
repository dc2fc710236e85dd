"""Hugging Face checkpoints: `config.json` beside safetensors, one file or sharded, or torch files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitral.formats.canonical import Checkpoint, canonical
from vitral.formats.dialect_hf import spec_from_hf
from vitral.formats.json_text import read_object
from vitral.formats.mapping import canonical_from_hf, is_ignored
from vitral.formats.mistral import united
from vitral.formats.safetensors import read_index

__all__ = ["open_huggingface"]


def open_huggingface(path: Path, config_file: Path, files: Sequence[Path], index: Path | None) -> Checkpoint:
    """Open a checkpoint whose tensors are in `files`, or in those that a safetensors `index` lists."""
    config = read_object(config_file)
    spec = spec_from_hf(config)
    stored = united(files) if index is None else read_index(index)
    stored = {name: tensor for name, tensor in stored.items() if not is_ignored(name)}
    return Checkpoint(path, "safetensors", spec, canonical(stored, canonical_from_hf, spec, pairs=False), config)
