"""Open any readable checkpoint: what it is, its architecture, its weights, its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vitral.errors import FormatError, TensorMismatch
from vitral.formats.canonical import Checkpoint, canonical
from vitral.formats.detect import find
from vitral.formats.dialect_gguf import spec_from_gguf
from vitral.formats.gguf import GgufFile, GgufTensor
from vitral.formats.mapping import canonical_from_gguf, is_ignored
from vitral.formats.metadata_text import first_text
from vitral.formats.weights import Tensor

__all__ = ["Checkpoint", "open_checkpoint", "open_gguf"]


def open_checkpoint(path: Path, read: Mapping[Path, GgufFile] = MappingProxyType({})) -> Checkpoint:
    """Open a model file or folder of any layout: gguf, safetensors, meta, mistral or llama2c.

    `read` are GGUF files that were read before, by their paths; they are not read again.
    Nothing but headers is read; tensors stay in their files until asked for. Raises ModelNotFound,
    FormatError (TruncatedFile, UnsafeFile, TensorMismatch), SpecError or UnsupportedArchitecture.
    """
    path = Path(path)
    found = find(path)
    if found.layout == "gguf":
        return open_gguf(found.files[0], read)
    # Who opens a GGUF file, which has all in one, reads none of what follows.
    if found.layout == "llama2c":
        from vitral.formats.llama2c import open_llama2c

        return open_llama2c(found.files[0])
    assert found.config is not None, "every other layout has a configuration"
    if found.layout == "meta":
        from vitral.formats.meta import open_meta

        return open_meta(path, found.config, found.files)
    if found.layout == "mistral":
        from vitral.formats.mistral import open_mistral

        return open_mistral(path, found.config, found.files)
    from vitral.formats.huggingface import open_huggingface

    return open_huggingface(path, found.config, found.files, found.index)


def open_gguf(path: Path, read: Mapping[Path, GgufFile] = MappingProxyType({})) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one; `read` as for `open_checkpoint`."""
    file = GgufFile.open(path, read)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None and first_text(file.metadata, "general.architecture") == "llama":
        raise TensorMismatch(f"{path} has no tensor token_embd.weight: it may hold a vocabulary alone")
    spec = spec_from_gguf(
        file.metadata,
        embedding.shape[0] if embedding else 0,
        "output.weight" not in file.tensors,
        _factors(path, file.tensors.get("rope_freqs.weight")),
    )
    stored = {
        name: Tensor(name, tensor.type, tensor.shape, tensor.raw)
        for name, tensor in file.tensors.items()
        if not is_ignored(name)
    }
    weights = canonical(stored, canonical_from_gguf, spec, pairs=True)
    return Checkpoint(path, "gguf", spec, weights, file.metadata)


def _factors(path: Path, tensor: GgufTensor | None) -> tuple[float, ...] | None:
    """The divisors of the rotary frequencies, if the file has them."""
    if tensor is None:
        return None
    if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 4096:
        raise FormatError(
            f"{path}: rope_freqs.weight is {tensor.type.name} of shape {tensor.shape}; F32 and one dimension are wanted"
        )
    return tuple(tensor.raw().view("<f4").ravel().tolist())
