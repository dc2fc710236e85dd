"""Safetensors files: a JSON header and the bytes of tensors, memory-mapped.

Source: the format section of the `safetensors` README. Eight bytes of header length, a header that
gives each tensor a type, a shape and a range of the data, then the data without holes. Files come
from strangers: header size and tensor count are capped, ranges must lie inside the file, fill it
and not overlap. Writing streams, and files appear under their names only when complete.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, TensorMismatch, TruncatedFile, UnsupportedType
from vitral.formats.bounds import LARGEST_ELEMENTS, map_file, product
from vitral.formats.json_text import parse_object, read_object
from vitral.formats.quants import TYPES
from vitral.formats.weights import U8, Tensor

__all__ = [
    "TYPES_ALLOWED",
    "arrays_as_safetensors",
    "read_index",
    "read_notes",
    "read_safetensors",
    "shard_names",
    "write_safetensors",
]

TYPES_ALLOWED = ("F32", "F16", "BF16")
_LARGEST_HEADER = 16 << 20  # bytes; Mixtral 8x22B in one file would have 250 KB
_MOST_TENSORS = 1 << 14
_MOST_SHARDS = 1 << 12
_LONGEST_NAME = 1 << 10
_MOST_DIMENSIONS = 8
_PLAIN_NAME = re.compile(r"(?!\.)[\w.+-]{1,200}", re.ASCII)
_INDEX = "model.safetensors.index.json"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by their names, still on disk.

    Raises FormatError or TruncatedFile, which name the tensor and what was found.
    """
    header, _, data = _header(path)
    if len(header) > _MOST_TENSORS:
        raise FormatError(f"{path} has {len(header)} tensors; at most {_MOST_TENSORS} are allowed")
    found: dict[str, Tensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensor_type, shape, start, end = _entry(path, name, entry)
        ranges.append((start, end, name))
        found[name] = Tensor(name, TYPES[tensor_type], shape, partial(_bytes, data, start, end))
    _check_ranges(path, ranges, data.size)
    return found


def read_notes(path: Path) -> dict[str, str]:
    """The texts that a file, or the first file of a folder, keeps under `__metadata__` in its header."""
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))), path / "model.safetensors")
        if not path.exists():
            return {}
    return _header(path)[1]


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], U8]:
    """The descriptions of tensors, the notes, and the data."""
    mapped = map_file(path, 8)
    size = int.from_bytes(mapped[:8].tobytes(), "little")
    if not 2 <= size <= _LARGEST_HEADER:
        raise FormatError(
            f"{path} is not a safetensors file: it claims a header of {size} bytes; allowed: 2 to {_LARGEST_HEADER}"
        )
    if 8 + size > mapped.size:
        raise TruncatedFile(
            f"{path}: the header has {size} bytes, {mapped.size - 8} are left in the file; download it again"
        )
    header = parse_object(mapped[8 : 8 + size].tobytes(), f"{path}, header")
    notes = header.pop("__metadata__", {})
    _check_notes(path, notes)
    return header, notes, mapped[8 + size :]


def _bytes(data: U8, start: int, end: int) -> U8:
    return data[start:end]


def _check_notes(path: Path, notes: Any) -> None:
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise FormatError(f"{path}: __metadata__ in the header must map texts to texts")


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and range of one tensor, each checked by itself."""
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise FormatError(f"{path}: a tensor name of {len(name)} characters; allowed: 1 to {_LONGEST_NAME}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in TYPES_ALLOWED:
        raise UnsupportedType(
            f"{path}: tensor {name!r} is of type {str(kind)[:20]!r}; allowed: {', '.join(TYPES_ALLOWED)} "
            "(quantised safetensors are not read: take the original, or a GGUF file)"
        )
    if not _naturals(shape) or len(shape) > _MOST_DIMENSIONS:
        raise FormatError(f"{path}: tensor {name!r} has the shape {str(shape)[:80]}; allowed: a list of whole numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{path}: tensor {name!r} has data_offsets {str(offsets)[:80]}; two whole numbers are wanted")
    elements = product(shape)
    if elements is None:
        raise FormatError(f"{path}: tensor {name!r} of shape {shape} has over {LARGEST_ELEMENTS} elements")
    n_bytes = elements * TYPES[kind].bytes_per_block
    if offsets[1] - offsets[0] != n_bytes:
        raise FormatError(
            f"{path}: tensor {name!r} has {offsets[1] - offsets[0]} bytes; {kind} of shape {shape} takes {n_bytes}"
        )
    return kind, tuple(shape), offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_ranges(path: Path, ranges: list[tuple[int, int, str]], size: int) -> None:
    end_before, name_before = 0, "the header"
    for start, end, name in sorted(ranges):
        if start < end_before:
            raise FormatError(f"{path}: tensors {name_before!r} and {name!r} overlap at {start}")
        if start > end_before:
            raise FormatError(f"{path}: {start - end_before} bytes before tensor {name!r} belong to none")
        end_before, name_before = end, name
    if end_before > size:
        raise TruncatedFile(
            f"{path}: tensor {name_before!r} ends {end_before - size} bytes after the file; download it again"
        )
    if end_before < size:
        raise FormatError(f"{path}: the last {size - end_before} bytes belong to no tensor")


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> name of a file beside the index, which need not exist."""
    wanted = read_object(index).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(name, str) for name in wanted.values()):
        raise FormatError(f"{index}: weight_map must map tensor names to file names")
    shards = set(wanted.values())
    if len(shards) > _MOST_SHARDS:
        raise FormatError(f"{index} names {len(shards)} files; at most {_MOST_SHARDS} are allowed")
    for shard in shards:
        if not _PLAIN_NAME.fullmatch(shard):
            raise FormatError(f"{index} names the file {shard[:80]!r}; allowed: a plain name beside it")
    return wanted


def read_index(path: Path) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, by its `*.index.json`: what it lists, no more and no less."""
    wanted = shard_names(path)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(wanted.values())):
        if not (path.parent / shard).is_file():
            raise FormatError(f"{path} names {shard}, which is missing beside it; download it too")
        for name, tensor in read_safetensors(path.parent / shard).items():
            if wanted.get(name) != shard:
                raise TensorMismatch(f"{shard} holds tensor {name!r}, which {path.name} does not place there")
            found[name] = tensor
    missing = [name for name in wanted if name not in found]
    if missing:
        raise TensorMismatch(f"{path} places {missing[0]!r} in {wanted[missing[0]]}, which does not hold it")
    return found


ToWrite = tuple[str, str, tuple[int, ...], Callable[[], U8]]
"""Name, type, shape, and the bytes on demand (called once, in turn)."""


def write_safetensors(
    folder: Path, tensors: Iterable[ToWrite], shard_bytes: int = 5 << 30, notes: Mapping[str, str] | None = None
) -> list[Path]:
    """Write tensors to `model.safetensors`, or to shards of at most `shard_bytes` and their index.

    `notes` are texts for the header of every file. Types: F32, F16, BF16. Returns the paths written. Raises FormatError for what cannot be held.

    >>> import tempfile
    >>> row = np.arange(4, dtype=np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path] = write_safetensors(Path(folder), [("t", "F32", (4,), lambda: row.view(np.uint8))])
    ...     read_safetensors(path)["t"].dequantize()
    array([0., 1., 2., 3.], dtype=float32)
    """
    todo = list(tensors)
    for name, kind, _, _ in todo:
        if kind not in TYPES_ALLOWED:
            raise FormatError(f"tensor {name!r} is {kind}; safetensors can hold {', '.join(TYPES_ALLOWED)}")
    if len({name for name, *_ in todo}) != len(todo):
        raise FormatError("a tensor name is to be written twice")
    groups = _divided(todo, shard_bytes)
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    written: dict[Path, Path] = {}
    try:
        for file_name, group in zip(names, groups, strict=True):
            partial_file = folder / f".{file_name}.{os.getpid()}.partial"
            written[folder / file_name] = partial_file
            _write(partial_file, group, notes or {})
        if len(groups) > 1:
            index = {
                "metadata": {"total_size": sum(_n_bytes(kind, shape) for _, kind, shape, _ in todo)},
                "weight_map": {n: f for f, group in zip(names, groups, strict=True) for n, *_ in group},
            }
            written[folder / _INDEX] = folder / f".{_INDEX}.{os.getpid()}.partial"
            written[folder / _INDEX].write_text(json.dumps(index, indent=2) + "\n")
        for final, partial_file in written.items():
            partial_file.replace(final)
    finally:
        for partial_file in written.values():
            with suppress(FileNotFoundError):
                partial_file.unlink()
    return list(written)


_ARRAYS = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}


def arrays_as_safetensors(arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, str] | None = None) -> bytes:
    """Arrays of float32, float64, int32 or int64 as one file's bytes: results, which is why whole numbers may be in it.

    FormatError for another type.

    >>> data = arrays_as_safetensors({"a": np.arange(3, dtype=np.int32)}, {"from": "here"})
    >>> int.from_bytes(data[:8], "little") % 8, np.frombuffer(data[-12:], np.int32).tolist()
    (0, [0, 1, 2])
    """
    header: dict[str, Any] = {"__metadata__": dict(notes or {})}
    parts: list[bytes] = []
    at = 0
    for name, array in arrays.items():
        if array.dtype.name not in _ARRAYS:
            raise FormatError(f"array {name!r} is of type {array.dtype}; allowed: {', '.join(_ARRAYS)}")
        parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        header[name] = {
            "dtype": _ARRAYS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(parts[-1])],
        }
        at += len(parts[-1])
    return b"".join([_head(header), *parts])


def _n_bytes(kind: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * TYPES[kind].bytes_per_block


def _divided(tensors: Sequence[ToWrite], most_bytes: int) -> list[list[ToWrite]]:
    groups: list[list[ToWrite]] = [[]]
    room = most_bytes
    for tensor in tensors:
        size = _n_bytes(tensor[1], tensor[2])
        if groups[-1] and size > room:
            groups.append([])
            room = most_bytes
        groups[-1].append(tensor)
        room -= size
    return groups


def _head(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(path: Path, tensors: Sequence[ToWrite], notes: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **notes}}
    at = 0
    for name, kind, shape, _ in tensors:
        end = at + _n_bytes(kind, shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    with path.open("wb") as file:
        file.write(_head(header))
        for name, kind, shape, read in tensors:
            data = np.ascontiguousarray(read())
            if data.dtype != np.uint8 or data.size != _n_bytes(kind, shape):
                raise FormatError(
                    f"tensor {name!r} gave {data.nbytes} bytes; {kind} of shape {shape} is another number"
                )
            file.write(data.data)
        file.flush()
        os.fsync(file.fileno())
