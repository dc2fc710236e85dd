"""GGUF files, versions 2 and 3: metadata and tensors, memory-mapped.

Source: ggml's `docs/gguf.md`. A file is a header (magic, version, counts), key/value metadata,
tensor descriptions, padding to the alignment, and tensor data. Files come from strangers: every
length is compared with the bytes that are left before anything is read or reserved.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, TruncatedFile
from vitral.formats.quants import BY_GGML_ID, TypeInfo

__all__ = ["MAGIC", "GgufFile", "GgufTensor", "read_gguf"]

MAGIC = b"GGUF"
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 20
_LONGEST_NAME = 1 << 16
_LARGEST_ALIGNMENT = 1 << 16
_LARGEST_ELEMENTS = 1 << 48

# Value types by their number: struct code of a scalar, or None for string (8) and array (9).
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a file: shape in NumPy's order (rows first), type, and its bytes on demand."""

    name: str
    shape: tuple[int, ...]
    type: TypeInfo
    data: NDArray[np.uint8]

    def raw(self) -> NDArray[np.uint8]:
        """Blocks as uint8 (rows, bytes per row), a view of the mapped file."""
        return self.data.reshape(math.prod(self.shape[:-1]), -1)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file, or a set of split ones, holds."""

    paths: tuple[Path, ...]
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Open a file; of a split model, any part opens all.

        Raises FormatError or TruncatedFile, which name what was found and where.
        """
        first = read_gguf(path)
        count = first.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return first
        return _join([read_gguf(part) for part in _parts(path, count)], count)


def read_gguf(path: Path) -> GgufFile:
    """Open one file as it stands, without looking for its siblings."""
    with path.open("rb") as file:
        file.seek(0, 2)
        size = file.tell()
        if size < 24:
            raise TruncatedFile(f"{path} has {size} bytes; a GGUF header alone takes 24")
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    reader = _Reader(path, mapped)
    version, n_tensors, n_keys = reader.header()
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = reader.text("metadata key", _LONGEST_NAME)
        if key in metadata:
            raise reader.wrong(f"metadata key {key!r} appears twice")
        metadata[key] = reader.value(reader.number("I"), key)
    described: dict[str, tuple[tuple[int, ...], TypeInfo, int]] = {}
    for _ in range(n_tensors):
        name, shape, info, offset = reader.description()
        if name in described:
            raise reader.wrong(f"tensor {name!r} appears twice")
        described[name] = (shape, info, offset)
    return GgufFile((path,), version, metadata, reader.tensors(described, reader.alignment(metadata)))


class _Reader:
    """A cursor over the mapped bytes that never reads past the end."""

    def __init__(self, path: Path, mapped: NDArray[np.uint8]) -> None:
        self.path, self.mapped, self.at = path, mapped, 0
        self.bytes = mapped.data

    def wrong(self, text: str) -> FormatError:
        return FormatError(f"{self.path} at byte {self.at}: {text}")

    def take(self, n: int, what: str) -> memoryview:
        if n > len(self.bytes) - self.at:
            left = len(self.bytes) - self.at
            raise TruncatedFile(f"{self.path} at byte {self.at}: {what} wants {n} bytes, {left} are left")
        self.at += n
        return self.bytes[self.at - n : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), "a number"))[0]

    def header(self) -> tuple[int, int, int]:
        if bytes(self.take(4, "the magic")) != MAGIC:
            raise FormatError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'")
        version = self.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = "the file is big-endian" if swapped in (2, 3) else "convert it with a current tool"
            raise self.wrong(f"GGUF version {version}; allowed: 2 and 3, little-endian ({hint})")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        for found, most, what in ((n_tensors, _MOST_TENSORS, "tensors"), (n_keys, _MOST_KEYS, "metadata keys")):
            if found > most:
                raise self.wrong(f"{found} {what}; at most {most} are allowed")
        return version, n_tensors, n_keys

    def text(self, what: str, longest: int) -> str:
        length = self.number("Q")
        if length > longest:
            raise self.wrong(f"a {what} of {length} bytes; at most {longest} are allowed")
        try:
            return bytes(self.take(length, what)).decode()
        except UnicodeDecodeError:
            raise self.wrong(f"a {what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text("string", len(self.bytes))
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise self.wrong(f"value type {kind} of {key!r} does not exist; the last is 12")
        if kind == _BOOL:
            return self.number("B") != 0
        return self.number(_SCALARS[kind])

    def array(self, key: str) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            if count > (len(self.bytes) - self.at) // 8:
                raise self.wrong(f"{key!r} claims {count} strings in {len(self.bytes) - self.at} bytes")
            return [self.text("string", len(self.bytes)) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.wrong(f"{key!r} is an array of value type {kind}; allowed: numbers, booleans and strings")
        dtype = np.dtype("<" + _SCALARS[kind]) if kind != _BOOL else np.dtype("u1")
        if count > len(self.bytes):
            raise self.wrong(f"{key!r} claims {count} numbers in a file of {len(self.bytes)} bytes")
        values = np.frombuffer(self.take(count * dtype.itemsize, f"array {key!r}"), dtype)
        return values.astype(bool) if kind == _BOOL else values

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        found = metadata.get("general.alignment", 32)
        if not isinstance(found, int) or not 1 <= found <= _LARGEST_ALIGNMENT or found & (found - 1):
            raise self.wrong(f"general.alignment is {found!r}; allowed: a power of two up to {_LARGEST_ALIGNMENT}")
        return found

    def description(self) -> tuple[str, tuple[int, ...], TypeInfo, int]:
        name = self.text("tensor name", _LONGEST_NAME)
        n_dims = self.number("I")
        if not 1 <= n_dims <= 4:
            raise self.wrong(f"tensor {name!r} has {n_dims} dimensions; allowed: 1 to 4")
        shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in BY_GGML_ID:
            known = ", ".join(info.name for info in BY_GGML_ID.values())
            raise self.wrong(f"tensor {name!r} has weight type {kind}, which Vitral does not read; it reads {known}")
        info = BY_GGML_ID[kind]
        if 0 in shape or math.prod(shape) > _LARGEST_ELEMENTS:
            raise self.wrong(f"tensor {name!r} has shape {shape}; allowed: 1 to {_LARGEST_ELEMENTS} elements")
        if shape[-1] % info.block:
            raise self.wrong(f"tensor {name!r} has rows of {shape[-1]}; {info.name} wants multiples of {info.block}")
        return name, shape, info, offset

    def tensors(
        self, described: Mapping[str, tuple[tuple[int, ...], TypeInfo, int]], alignment: int
    ) -> dict[str, GgufTensor]:
        start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        end_before, name_before = 0, ""
        for name, (shape, info, offset) in sorted(described.items(), key=lambda item: item[1][2]):
            if offset % alignment:
                raise self.wrong(f"tensor {name!r} begins at {offset}, which is not a multiple of {alignment}")
            if offset < end_before:
                raise self.wrong(f"tensors {name_before!r} and {name!r} overlap at {offset}")
            size = math.prod(shape) // info.block * info.bytes_per_block
            if start + offset + size > len(self.mapped):
                missing = start + offset + size - len(self.mapped)
                raise TruncatedFile(
                    f"{self.path}: tensor {name!r} ends {missing} bytes after the file; download it again"
                )
            end_before, name_before = offset + size, name
            found[name] = GgufTensor(name, shape, info, self.mapped[start + offset : start + offset + size])
        return {name: found[name] for name in described}


_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def _parts(path: Path, count: int) -> list[Path]:
    named = _PART.match(path.name)
    if named is None or int(named["count"]) != count:
        raise FormatError(
            f"{path} is one of {count} parts, but its name does not end in -00001-of-{count:05d}.gguf; give it its name back"
        )
    parts = [path.with_name(f"{named['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise FormatError(f"{path} is one of {count} parts; beside it are missing: {', '.join(missing)}")
    return parts


def _join(files: list[GgufFile], count: int) -> GgufFile:
    tensors: dict[str, GgufTensor] = {}
    for number, file in enumerate(files):
        claimed = (file.metadata.get("split.no"), file.metadata.get("split.count"))
        if claimed != (number, count):
            raise FormatError(f"{file.paths[0]} says it is part {claimed}; by its name it is {(number, count)}")
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise FormatError(f"{file.paths[0]}: tensor {name!r} stands in an earlier part too")
            tensors[name] = tensor
    wanted = files[0].metadata.get("split.tensors.count")
    if wanted is not None and wanted != len(tensors):
        raise FormatError(f"{files[0].paths[0]}: the parts hold {len(tensors)} tensors, {wanted} are announced")
    return GgufFile(tuple(f.paths[0] for f in files), files[0].version, files[0].metadata, tensors)
