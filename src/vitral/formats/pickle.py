"""Checkpoints that torch wrote (`.pth`, `.pt`, `pytorch_model.bin`), read without running anything.

Such a file is a ZIP archive: `data.pkl`, a pickle that describes the tensors, and one stored member
for each storage. `pickle_machine.py` interprets the pickle without running it; the only globals and calls
that are understood here are the ones in `_ALLOWED`.

Source: torch's `serialization.py`.
"""

from __future__ import annotations

import io
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitral.errors import FormatError, TruncatedFile, UnsafeFile, UnsupportedType
from vitral.formats.bounds import product
from vitral.formats.pickle_machine import PickleMachine
from vitral.formats.quants import TYPES, TypeInfo
from vitral.formats.weights import U8, Tensor
from vitral.formats.zipped import Member, read_zip

__all__ = ["StateDict", "read_torch"]

_LARGEST_PICKLE = 8 << 20  # bytes; Mixtral 8x7B in one file would have under 200 KB
_MOST_DIMENSIONS = 8

# What a global of the pickle means to us. Everything else is refused by name.
_ALLOWED = {
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}
_OTHER_STORAGES = frozenset(
    f"torch {kind}Storage" for kind in ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
)


@dataclass(frozen=True, slots=True)
class _Global:
    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class _Storage:
    type: TypeInfo
    key: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class _TensorNote:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StateDict:
    """Tensors by name, still on disk; `same_as` maps a name to an earlier one that is the very same tensor."""

    tensors: dict[str, Tensor]
    same_as: dict[str, str]


def read_torch(path: Path) -> StateDict:
    """The tensors of a torch checkpoint.

    Raises UnsafeFile for a pickle that asks for anything but tensors, FormatError or TruncatedFile
    for a damaged file.
    """
    members = read_zip(path)
    root = _root(path, members)
    order = members.get(f"{root}byteorder")
    if order is not None and order.data[:16].tobytes().strip() != b"little":
        raise FormatError(f"{path} was written on a big-endian machine; convert it there")
    program = members[f"{root}data.pkl"]
    if program.data.size > _LARGEST_PICKLE:
        raise UnsafeFile(f"{path}: data.pkl has {program.data.size} bytes; at most {_LARGEST_PICKLE} are allowed")
    content = _TensorMachine(path, "data.pkl").run(io.BytesIO(program.checked(path)))
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds a {type(content).__name__.strip('_')}; a dictionary of tensors is wanted")
    tensors: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    first: dict[_TensorNote, str] = {}
    for name, note in content.items():
        if not isinstance(name, str) or not isinstance(note, _TensorNote):
            raise FormatError(f"{path}: entry {str(name)[:80]!r} is no tensor; a dictionary of tensors alone is wanted")
        if note in first:
            same_as[name] = first[note]
        first.setdefault(note, name)
        tensors[name] = _tensor(path, name, note, members.get(f"{root}data/{note.storage.key}"))
    return StateDict(tensors, same_as)


def _root(path: Path, members: dict[str, Member]) -> str:
    """The folder inside the archive, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise FormatError(f"{path} is a ZIP archive but no torch checkpoint: it has {len(roots)} members data.pkl")
    return roots[0]


def _tensor(path: Path, name: str, note: _TensorNote, member: Member | None) -> Tensor:
    """A note checked against the bytes that are there."""
    storage = note.storage
    if member is None:
        raise TruncatedFile(f"{path}: the storage {storage.key[:40]!r} of tensor {name!r} is missing")
    n_bytes = storage.n_elements * storage.type.bytes_per_block
    if member.data.size != n_bytes:
        raise FormatError(
            f"{path}: the storage of tensor {name!r} has {member.data.size} bytes, {n_bytes} are announced"
        )
    elements = product(note.shape)
    last = note.offset + sum((n - 1) * step for n, step in zip(note.shape, note.stride, strict=True))
    if not elements or elements > storage.n_elements or last >= storage.n_elements:
        raise FormatError(
            f"{path}: tensor {name!r} of shape {note.shape}, strides {note.stride} at {note.offset} "
            f"does not fit its storage of {storage.n_elements} elements"
        )
    return Tensor(name, storage.type, note.shape, partial(_read, member.data, note, elements))


def _read(data: U8, note: _TensorNote, elements: int) -> U8:
    size = note.storage.type.bytes_per_block
    dense, expected = True, 1
    for n, step in zip(reversed(note.shape), reversed(note.stride), strict=True):
        dense &= n == 1 or step == expected
        expected *= n
    if dense:
        return data[note.offset * size : (note.offset + elements) * size]
    items = data.view(f"V{size}")[note.offset :]
    strides = tuple(step * size for step in note.stride)
    turned = np.lib.stride_tricks.as_strided(items, note.shape, strides, writeable=False)
    return np.ascontiguousarray(turned).view(np.uint8).reshape(-1)


class _TensorMachine(PickleMachine):
    """Understands storages and the calls that rebuild tensors from them."""

    def find_global(self, name: Any) -> _Global:
        if name in _ALLOWED:
            return _Global(name, _ALLOWED[name])
        shown = str(name)[:80].replace(" ", ".")
        if name in _OTHER_STORAGES:
            raise UnsupportedType(f"{self.path}: a tensor is stored as {shown}; allowed: Float, Half and BFloat16")
        raise UnsafeFile(
            f"{self.path} asks to call {shown}, which no dictionary of tensors needs; it may be an attack. "
            "Take a safetensors or GGUF version of the model"
        )

    def persistent(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _Global(meaning=("F32" | "F16" | "BF16") as kind), str(key), str(), int(n_elements)):
                if n_elements >= 0:
                    return _Storage(TYPES[kind], key, n_elements)
        raise FormatError(f"{self.path}: data.pkl refers to something else than a storage of numbers")

    def call(self, called: Any, arguments: Any) -> Any:
        match called, arguments:
            case _Global(meaning="dict"), ():
                return {}
            case _Global(meaning="tensor"), (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
                if len(shape) == len(stride) <= _MOST_DIMENSIONS and all(map(_natural, (offset, *shape, *stride))):
                    return _TensorNote(storage, offset, shape, stride)
            case _Global(meaning="parameter"), (_TensorNote() as note, *_):
                return note
        what = called.name if isinstance(called, _Global) else type(called).__name__
        raise FormatError(f"{self.path}: data.pkl calls {what} with arguments that torch never writes")


def _natural(value: Hashable) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
