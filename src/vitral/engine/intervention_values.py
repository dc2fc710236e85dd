"""Numbers in an intervention document: float32 arrays that compare, hash and travel as JSON.

Three ways to write them: nested lists; `{"shape": [...], "float32": base64 of little-endian bytes}`, which
is what `to_json` writes; or `{"file": ..., "tensor": ..., "sha256": ...}`, a tensor of a safetensors file
whose digest the document fixes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from vitral.errors import RequestError
from vitral.formats.safetensors import read_safetensors
from vitral.model.law import F32

__all__ = ["FileSource", "Values"]

_MOST_AXES = 4


@dataclass(frozen=True, slots=True)
class FileSource:
    """Where values came from: a tensor of a safetensors file with this SHA-256."""

    file: str
    tensor: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Values:
    """A float32 array as bytes; RequestError for what is no array of numbers, or holds a NaN.

    >>> Values.of([[1, 2], [3, 4]]).array().tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    shape: tuple[int, ...]
    data: bytes
    source: FileSource | None = None

    @classmethod
    def of(cls, values: ArrayLike, source: FileSource | None = None) -> Self:
        """From anything that NumPy takes as an array of numbers."""
        try:
            array = np.ascontiguousarray(np.asarray(values), "<f4").reshape(np.shape(values))
        except (TypeError, ValueError) as error:
            raise RequestError(f"values are no array of numbers ({error}); give lists of equal length") from error
        if array.ndim > _MOST_AXES:
            raise RequestError(f"values have {array.ndim} axes; allowed: up to {_MOST_AXES}")
        if np.isnan(array).any():
            raise RequestError("values hold a NaN; allowed: numbers and infinities")
        return cls(array.shape, array.tobytes(), source)

    def array(self) -> F32:
        """The numbers, read-only."""
        return np.frombuffer(self.data, "<f4").reshape(self.shape)

    @classmethod
    def from_json(cls, document: object, folder: Path | None = None) -> Self:
        """From one of the three forms. Files are looked for in `folder`, and refused without one."""
        if isinstance(document, list | int | float) and not isinstance(document, bool):
            return cls.of(document)
        if not isinstance(document, Mapping):
            raise RequestError(f"values are {document!r:.40}; allowed: lists of numbers, or an object")
        if set(document) == {"shape", "float32"}:
            return cls._inline(document)
        if set(document) == {"file", "tensor", "sha256"}:
            return cls._from_file(document, folder)
        raise RequestError(
            f"values have the keys {sorted(map(str, document))}; allowed: shape and float32, or file, tensor and sha256"
        )

    def to_json(self) -> dict[str, Any]:
        """The reference if they came from a file, else shape and base64."""
        if self.source is not None:
            return {"file": self.source.file, "tensor": self.source.tensor, "sha256": self.source.sha256}
        return {"shape": list(self.shape), "float32": base64.b64encode(self.data).decode()}

    @classmethod
    def _inline(cls, document: Mapping[str, Any]) -> Self:
        shape, text = document["shape"], document["float32"]
        whole = isinstance(shape, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape
        )
        if not whole or not isinstance(text, str):
            raise RequestError("values want shape as a list of whole numbers and float32 as a base64 text")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"values: float32 is no base64 ({error})") from error
        n_bytes = 4
        for n in shape:
            n_bytes *= n
        if len(data) != n_bytes:
            raise RequestError(f"values have {len(data)} bytes; shape {shape} wants {n_bytes}")
        return cls.of(np.frombuffer(data, "<f4").reshape(shape))

    @classmethod
    def _from_file(cls, document: Mapping[str, Any], folder: Path | None) -> Self:
        if not all(isinstance(value, str) for value in document.values()):
            raise RequestError("values want file, tensor and sha256 as texts")
        source = FileSource(**document)
        if folder is None:
            raise RequestError(f"values name the file {source.file}; files are not read here: give the numbers")
        path = (folder / source.file).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise RequestError(f"values name the file {source.file}, which is not in {folder}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != source.sha256:
            raise RequestError(f"{source.file} has sha256 {found}; the document wants {source.sha256}")
        tensors = read_safetensors(path)
        if source.tensor not in tensors:
            raise RequestError(
                f"{source.file} has no tensor {source.tensor}; it has {', '.join(sorted(tensors))}"[:300]
            )
        return cls.of(tensors[source.tensor].dequantize(), source)
