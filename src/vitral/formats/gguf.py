"""GGUF files, versions 2 and 3: metadata and tensors, memory-mapped.

Source: ggml's `docs/gguf.md`. A file is a header (magic, version, counts), key/value metadata,
tensor descriptions, padding to the alignment, and tensor data. Files come from strangers: every
length is compared with the bytes that are left before anything is read or reserved, and what takes
more memory than it takes of the file (text, descriptions) is capped. `gguf_write.py` writes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, TruncatedFile, UnsupportedType
from vitral.formats.bounds import LARGEST_ELEMENTS, Cursor, map_file, product
from vitral.formats.quants import BY_GGML_ID, TypeInfo
from vitral.native import Texts

__all__ = ["ARRAY", "BOOL", "LARGEST_ALIGNMENT", "LONGEST_NAME", "MAGIC", "SCALARS", "STRING"]
__all__ += ["GgufFile", "GgufTensor", "read_gguf"]

MAGIC = b"GGUF"
_HEADER_BYTES = 24
# Far above any model: Mixtral 8x22B has 1,739 tensors with its experts apart, Llama 3 has 408,000 strings.
_MOST_KEYS = 1 << 14
_MOST_TENSORS = 1 << 14
_MOST_STRINGS = 1 << 21
_MOST_LISTED = 1 << 10  # strings of an array; those of a vocabulary become objects when they are asked for
_MOST_TEXT_BYTES = 1 << 25
LONGEST_NAME = 1 << 10
LARGEST_ALIGNMENT = 1 << 16

# Value types by their number; a scalar's struct code is also its NumPy one.
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


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
    """What a GGUF file, or a set of split ones, holds.

    `metadata` has plain values: int, float, bool, str, list[str] (`Texts` where there are over a thousand), and NumPy
    arrays for arrays of numbers. `types` keeps the value type of each key by its number in GGUF.
    """

    paths: tuple[Path, ...]
    version: int
    metadata: Mapping[str, Any]
    types: Mapping[str, int]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path, read: Mapping[Path, GgufFile] = MappingProxyType({})) -> GgufFile:
        """Open a file; of a split model, any part opens all. Files in `read` are not read again.

        Raises FormatError or TruncatedFile, which name what was found and where.
        """
        first = read.get(path) or read_gguf(path)
        count = first.number("split.count")
        if count is None or count <= 1:
            return first
        return _join([read.get(part) or read_gguf(part) for part in _parts(path, count)], count)

    def number(self, key: str) -> int | None:
        """A whole number of the metadata, None where the key is missing; FormatError for anything else."""
        value = self.metadata.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise FormatError(f"{self.paths[0]}: {key} is {value!r:.80}; allowed: a whole number")
        return value

    def exact_metadata(self) -> dict[str, Any]:
        """The metadata with numbers as NumPy scalars of their types: what `write_gguf` writes back unchanged."""
        exact = dict(self.metadata)
        for key, kind in self.types.items():
            if kind in SCALARS and kind != BOOL:
                exact[key] = np.dtype(SCALARS[kind]).type(exact[key])
        return exact


def read_gguf(path: Path) -> GgufFile:
    """Open one file as it stands, without looking for its siblings."""
    reader = _Reader(path, map_file(path, _HEADER_BYTES))
    version, n_tensors, n_keys = reader.header()
    metadata: dict[str, Any] = {}
    types: dict[str, int] = {}
    for _ in range(n_keys):
        key = reader.text("a metadata key", LONGEST_NAME)
        if key in metadata:
            raise reader.wrong(f"metadata key {key!r} appears twice")
        types[key] = reader.number("I", f"the type of {key!r}")
        metadata[key] = reader.value(types[key], key)
    described: dict[str, _Description] = {}
    for _ in range(n_tensors):
        name = reader.text("a tensor name", LONGEST_NAME)
        if name in described:
            raise reader.wrong(f"tensor {name!r} appears twice")
        described[name] = reader.description(name)
    return GgufFile((path,), version, metadata, types, reader.tensors(described, reader.alignment(metadata)))


@dataclass(frozen=True, slots=True)
class _Description:
    """What the header says of a tensor: `offset` counts from the start of the data."""

    shape: tuple[int, ...]
    type: TypeInfo
    n_bytes: int
    offset: int


class _Reader(Cursor):
    """Walks through one file and holds the budgets of what it may unfold to in memory."""

    def __init__(self, path: Path, mapped: NDArray[np.uint8]) -> None:
        super().__init__(mapped, path)
        self.mapped = mapped
        self.strings_left, self.text_left = _MOST_STRINGS, _MOST_TEXT_BYTES

    def header(self) -> tuple[int, int, int]:
        if bytes(self.take(4, "the magic")) != MAGIC:
            raise FormatError(f"{self.source} is not a GGUF file: it does not begin with 'GGUF'")
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

    def value(self, kind: int, key: str) -> Any:
        """A value of this type: a number, bool or str, or what `array` gives."""
        what = f"the value of {key!r}"
        if kind == STRING:
            text = self.text(what, self.text_left)
            self.text_left -= len(text)
            return text
        if kind == ARRAY:
            return self.array(self.number("I", what), self.number("Q", what), key)
        if kind not in SCALARS:
            raise self.wrong(f"value type {kind} of {key!r} does not exist; the last is 12")
        if kind == BOOL:
            return bool(self.truths(1, what)[0])
        return self.number(SCALARS[kind], what)

    def array(self, kind: int, count: int, key: str) -> list[str] | Texts | NDArray[Any]:
        """Strings as a list, or as Texts where they are many; numbers as an array that is a view of the file."""
        what = f"the array {key!r}"
        if kind == STRING:
            if count > self.strings_left:
                raise self.wrong(f"{what} has {count} strings; at most {_MOST_STRINGS} are allowed in a file")
            before = self.at
            strings = self.texts(what, count, self.text_left)
            self.strings_left -= count
            self.text_left -= self.at - before - 8 * count
            return strings.tolist() if count <= _MOST_LISTED else strings
        if kind not in SCALARS:
            raise self.wrong(f"{what} is of value type {kind}; allowed: numbers, booleans and strings, none nested")
        if kind == BOOL:
            return self.truths(count, what)
        return self.numbers(SCALARS[kind], count, what)

    def truths(self, count: int, what: str) -> NDArray[np.bool_]:
        values = self.numbers(np.uint8, count, what)
        if count and values.max() > 1:
            raise self.wrong(f"{what} has the truth value {values.max()}; allowed: 0 and 1")
        return values.view(np.bool_)

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        found = metadata.get("general.alignment", 32)
        is_number = isinstance(found, int) and not isinstance(found, bool)
        if not is_number or not 1 <= found <= LARGEST_ALIGNMENT or found & (found - 1):
            raise self.wrong(f"general.alignment is {found!r:.80}; allowed: a power of two up to {LARGEST_ALIGNMENT}")
        return int(found)

    def description(self, name: str) -> _Description:
        what = f"the description of tensor {name!r}"
        n_dims = self.number("I", what)
        if not 1 <= n_dims <= 4:
            raise self.wrong(f"tensor {name!r} has {n_dims} dimensions; allowed: 1 to 4")
        *dims, kind, offset = self.struct(f"{n_dims}QIQ", what)
        shape = tuple(dims)[::-1]
        if kind not in BY_GGML_ID:
            known = ", ".join(f"{info.name} ({info.ggml_id})" for info in BY_GGML_ID.values())
            raise UnsupportedType(
                f"{self.source}: tensor {name!r} has weight type {kind}, which Vitral does not read; it reads {known}"
            )
        info = BY_GGML_ID[kind]
        elements = product(shape)
        if not elements:
            raise self.wrong(f"tensor {name!r} has shape {shape}; allowed: 1 to {LARGEST_ELEMENTS} elements")
        if shape[-1] % info.block:
            raise self.wrong(f"tensor {name!r} has rows of {shape[-1]}; {info.name} wants multiples of {info.block}")
        return _Description(shape, info, elements // info.block * info.bytes_per_block, offset)

    def tensors(self, described: Mapping[str, _Description], alignment: int) -> dict[str, GgufTensor]:
        """The descriptions with their bytes: inside the file, aligned, none over another."""
        start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        end_before, name_before = 0, ""
        for name, d in sorted(described.items(), key=lambda item: item[1].offset):
            if d.offset % alignment:
                raise self.wrong(f"tensor {name!r} begins at {d.offset}, which is not a multiple of {alignment}")
            if d.offset < end_before:
                raise self.wrong(f"tensors {name_before!r} and {name!r} overlap at {d.offset}")
            end_before, name_before = d.offset + d.n_bytes, name
            missing = start + end_before - len(self.mapped)
            if missing > 0:
                raise TruncatedFile(
                    f"{self.source}: tensor {name!r} ends {missing} bytes after the file; download it again"
                )
            found[name] = GgufTensor(name, d.shape, d.type, self.mapped[start + d.offset : start + end_before])
        return {name: found[name] for name in described}


_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def _parts(path: Path, count: int) -> list[Path]:
    """The paths of all parts, by the name of one."""
    named = _PART.match(path.name)
    if named is None or int(named["count"]) != count:
        raise FormatError(
            f"{path} is one of {count} parts, but its name does not end in -00001-of-{count:05d}.gguf; rename it"
        )
    parts = [path.with_name(f"{named['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise FormatError(f"{path} is one of {count} parts; {len(missing)} are missing beside it: {some}")
    return parts


def _join(files: list[GgufFile], count: int) -> GgufFile:
    """One from all parts; the first holds the metadata."""
    tensors: dict[str, GgufTensor] = {}
    for number, file in enumerate(files):
        claimed = (file.number("split.no"), file.number("split.count"))
        if claimed != (number, count):
            raise FormatError(f"{file.paths[0]} says it is part {claimed}; by its name it is {(number, count)}")
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise FormatError(f"{file.paths[0]}: tensor {name!r} stands in an earlier part too")
            tensors[name] = tensor
    wanted = files[0].number("split.tensors.count")
    if wanted is not None and wanted != len(tensors):
        raise FormatError(f"{files[0].paths[0]}: the parts hold {len(tensors)} tensors, {wanted} are announced")
    return GgufFile(tuple(f.paths[0] for f in files), files[0].version, files[0].metadata, files[0].types, tensors)
