"""Writing GGUF, version 3: streamed, atomic, in one file or several.

Source: ggml's `docs/gguf.md`; split files as `llama-gguf-split` makes them: the first has all
metadata, each has `split.no`, `split.count` and `split.tensors.count`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError
from vitral.formats.bounds import product
from vitral.formats.gguf import ARRAY, BOOL, LARGEST_ALIGNMENT, LONGEST_NAME, MAGIC, SCALARS, STRING
from vitral.formats.quants import TypeInfo
from vitral.native import Texts

__all__ = ["TensorToWrite", "write_gguf"]

_KINDS = {np.dtype(code): kind for kind, code in SCALARS.items()}


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """A tensor to come: shape in NumPy's order; `read` is called once, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    type: TypeInfo
    read: Callable[[], NDArray[np.uint8]]

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) // self.type.block * self.type.bytes_per_block


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
    *,
    alignment: int = 32,
    split_bytes: int | None = None,
) -> list[Path]:
    """Write a model and return the paths of its files.

    Values of `metadata`: bool, str, list of str, NumPy scalars and arrays of numbers keep their
    types; a Python int is written as uint32 and a float as float32, as GGUF's own keys want them
    (an int that does not fit is an error: give a NumPy scalar). `GgufFile.exact_metadata()` gives
    what was read in this form.

    With `split_bytes` the tensors are divided over files `stem-00001-of-0000N.gguf` of at most
    that many bytes of data each (or one tensor). Files appear under their names only when all of
    them are complete. Raises FormatError for what the format cannot hold.

    >>> import tempfile
    >>> from vitral.formats.gguf import GgufFile
    >>> from vitral.formats.quants import TYPES
    >>> row = np.arange(4, dtype=np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.gguf")
    ...     _ = write_gguf(path, {"a": 7}, [TensorToWrite("t", (4,), TYPES["F32"], lambda: row.view(np.uint8))])
    ...     file = GgufFile.open(path)
    >>> file.metadata, file.tensors["t"].raw().view(np.float32)
    ({'a': 7}, array([[0., 1., 2., 3.]], dtype=float32))
    """
    if not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise FormatError(f"alignment is {alignment}; allowed: a power of two up to {LARGEST_ALIGNMENT}")
    todo = list(tensors)
    _check(todo)
    metadata = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    metadata.pop("general.alignment", None)
    own = {"general.alignment": np.uint32(alignment)} if alignment != 32 else {}
    if split_bytes is None:
        parts = {path: ({**metadata, **own}, todo)}
    else:
        groups = _divided(todo, split_bytes, alignment)
        parts = {}
        for i, group in enumerate(groups):
            place = {
                "split.no": np.uint16(i),
                "split.count": np.uint16(len(groups)),
                "split.tensors.count": np.int32(len(todo)),
            }
            part = path.with_name(f"{path.stem}-{i + 1:05d}-of-{len(groups):05d}.gguf")
            parts[part] = ({**(metadata if i == 0 else {}), **own, **place}, group)
    headers = {part: _header(*content, alignment) for part, content in parts.items()}
    written: dict[Path, Path] = {}
    try:
        for part, (_, group) in parts.items():
            written[part] = part.with_name(f".{part.name}.{os.getpid()}.partial")
            with written[part].open("wb") as file:
                _write(file, headers[part], group, alignment)
        for part, partial in written.items():
            partial.replace(part)
    finally:
        for partial in written.values():
            with suppress(FileNotFoundError):
                partial.unlink()
    return list(parts)


def _check(tensors: Sequence[TensorToWrite]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise FormatError(f"tensor {tensor.name!r} is to be written twice")
        seen.add(tensor.name)
        if not 1 <= len(tensor.shape) <= 4 or not product(tensor.shape) or min(tensor.shape) < 1:
            raise FormatError(f"tensor {tensor.name!r} has shape {tensor.shape}; allowed: 1 to 4 dimensions above 0")
        if tensor.shape[-1] % tensor.type.block:
            raise FormatError(
                f"tensor {tensor.name!r} has rows of {tensor.shape[-1]}; "
                f"{tensor.type.name} wants multiples of {tensor.type.block}"
            )


def _divided(tensors: Sequence[TensorToWrite], most_bytes: int, alignment: int) -> list[list[TensorToWrite]]:
    """Tensors in order, a new group wherever the next one would exceed `most_bytes`."""
    groups: list[list[TensorToWrite]] = [[]]
    room = most_bytes
    for tensor in tensors:
        size = _aligned(tensor.n_bytes, alignment)
        if size > room and groups[-1]:
            groups.append([])
            room = most_bytes
        groups[-1].append(tensor)
        room -= size
    if len(groups) > 0xFFFF:
        raise FormatError(f"{len(groups)} parts; at most {0xFFFF} are allowed, so make them larger")
    return groups


def _header(metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite], alignment: int) -> bytes:
    """Everything before the tensor data, padding included."""
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _name(key, "metadata key") + _value(key, value)
    offset = 0
    for tensor in tensors:
        out += _name(tensor.name, "tensor name")
        out += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.type.ggml_id, offset)
        offset += _aligned(tensor.n_bytes, alignment)
    return bytes(out.ljust(_aligned(len(out), alignment), b"\0"))


def _write(file: BinaryIO, header: bytes, tensors: Sequence[TensorToWrite], alignment: int) -> None:
    file.write(header)
    for tensor in tensors:
        data = np.ascontiguousarray(tensor.read())
        if data.dtype != np.uint8 or data.size != tensor.n_bytes:
            raise FormatError(
                f"tensor {tensor.name!r} gave {data.nbytes} bytes of {data.dtype}; "
                f"{tensor.type.name} of shape {tensor.shape} is {tensor.n_bytes} of uint8"
            )
        file.write(data.data)
        file.write(bytes(_aligned(data.size, alignment) - data.size))
    file.flush()
    os.fsync(file.fileno())


def _aligned(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _string(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{text!r:.80} has half a surrogate pair, which UTF-8 cannot hold") from None
    return struct.pack("<Q", len(data)) + data


def _name(text: str, what: str) -> bytes:
    name = _string(text)
    if not 1 <= len(name) - 8 <= LONGEST_NAME:
        raise FormatError(f"a {what} of {len(name) - 8} bytes; allowed: 1 to {LONGEST_NAME}")
    return name


def _value(key: str, value: Any) -> bytes:
    """Type number and bytes of a metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list | tuple | Texts):
        if not all(isinstance(item, str) for item in value):
            raise FormatError(f"metadata {key!r} is a list that is not all strings; give numbers as a NumPy array")
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_string(item) for item in value)
    if isinstance(value, bool | np.bool_):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        if not 0 <= value < 1 << 32:
            raise FormatError(f"metadata {key!r} is {value}, which is not a uint32; give it as a NumPy scalar")
        value = np.uint32(value)
    elif isinstance(value, float) and not isinstance(value, np.float64):
        value = np.float32(value)
    if not isinstance(value, np.generic | np.ndarray) or value.dtype.newbyteorder("<") not in _KINDS or value.ndim > 1:
        raise FormatError(
            f"metadata {key!r} is a {type(value).__name__}; allowed: str, bool, int, float, list of str, "
            "NumPy scalars and one-dimensional arrays"
        )
    kind = struct.pack("<I", _KINDS[value.dtype.newbyteorder("<")])
    data = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return kind + data if value.ndim == 0 else struct.pack("<I", ARRAY) + kind + struct.pack("<Q", value.size) + data
