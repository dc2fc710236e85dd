"""Weights: named tensors that stay in their file until they are asked for, and all of which must be."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitral.errors import TensorMismatch
from vitral.formats.bounds import nearest
from vitral.formats.quants import TypeInfo, decode
from vitral.model.law import F32, Quantised
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec

__all__ = ["Tensor", "Weights"]

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor under its canonical name; `shape` in NumPy's order, `read` fetches the bytes."""

    name: str
    type: TypeInfo
    shape: tuple[int, ...]
    read: Callable[[], U8]

    def raw(self) -> U8:
        """Rows of blocks, uint8 (rows, bytes per row); a vector is one row."""
        rows = self.shape[0] if len(self.shape) == 2 else 1
        return self.read().reshape(rows, -1)

    def law(self) -> Quantised | F32:
        """What `model.law` computes with: a Quantised, or float32 of `shape`."""
        values = decode(self.type.name, self.raw())
        return values if isinstance(values, Quantised) else values.reshape(self.shape)

    def dequantize(self) -> F32:
        """The values, float32 of `shape`."""
        values = self.law()
        return values.dequantize().reshape(self.shape) if isinstance(values, Quantised) else values

    def digest(self) -> bytes:
        """SHA-256 of name, type, shape and bytes.

        Vectors and routers count as float32, which is how GGUF keeps them whatever they were before.
        """
        small = len(self.shape) == 1 or self.name.endswith(".router.weight")
        data = self.dequantize() if small else self.raw()
        kind = "F32" if small else self.type.name
        digest = hashlib.sha256(f"{self.name}\0{kind}\0{self.shape}\0".encode())
        digest.update(np.ascontiguousarray(data).data)
        return digest.digest()


@dataclass(slots=True)
class Weights(Mapping[str, Tensor]):
    """The tensors of one model by canonical name, checked against its ModelSpec when made.

    A tensor that the spec does not know, that is missing or that has another shape raises
    TensorMismatch. `take` counts what is used; `finish` raises if something never was.
    """

    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        wanted = tensor_shapes(self.spec)
        for name, shape in wanted.items():
            if name not in self.tensors:
                raise TensorMismatch(f"tensor {name} is missing{_nearest(name, self.tensors)}")
            if self.tensors[name].shape != shape:
                raise TensorMismatch(
                    f"tensor {name} has shape {self.tensors[name].shape}; the configuration wants {shape}"
                )
        for name in self.tensors:
            if name not in wanted:
                raise TensorMismatch(f"tensor {name} is left over: this architecture has none{_nearest(name, wanted)}")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise TensorMismatch(f"there is no tensor {name}{_nearest(name, self.tensors)}")
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def take(self, name: str) -> Tensor:
        """The tensor of this name, counted as used."""
        self._taken.add(name)
        return self[name]

    def finish(self) -> None:
        """Raise TensorMismatch if a tensor was never taken."""
        unused = [name for name in self.tensors if name not in self._taken]
        if unused:
            raise TensorMismatch(f"{len(unused)} tensors were never used: {', '.join(unused[:5])}")

    def law(self) -> dict[str, Quantised | F32]:
        """Everything as `model.reference` wants it, read into memory."""
        return {name: tensor.law() for name, tensor in self.tensors.items()}

    def n_bytes(self, part: str = "") -> int:
        """Bytes of all tensors in their types, or of those with `part` in their names."""
        return sum(
            math.prod(tensor.shape) // tensor.type.block * tensor.type.bytes_per_block
            for name, tensor in self.tensors.items()
            if part in name
        )

    def digests(
        self, threads: int | None = None, progress: Callable[[int, int], object] | None = None
    ) -> dict[str, bytes]:
        """The digest of each tensor, in the order of their names; as many tensors at once as there are threads."""
        found: dict[str, bytes] = {}
        names = sorted(self.tensors)
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            for name, digest in zip(names, pool.map(lambda name: self.tensors[name].digest(), names), strict=True):
                found[name] = digest
                if progress is not None:
                    progress(len(found), len(names))
        return found

    def digest(self, threads: int | None = None, progress: Callable[[int, int], object] | None = None) -> str:
        """SHA-256 over the digests of all tensors in the order of their names, in hexadecimal.

        The same for the same values and types in whatever layout they were stored.
        """
        return hashlib.sha256(b"".join(self.digests(threads, progress).values())).hexdigest()

    def vectors_digest(self) -> str:
        """The same over the vectors alone: a model keeps them whatever its matrices are quantised to."""
        vectors = (self[name].digest() for name in sorted(self.tensors) if len(self[name].shape) == 1)
        return hashlib.sha256(b"".join(vectors)).hexdigest()

    def matrix_types(self) -> tuple[str, ...]:
        """The types of what is no vector, by name, in order."""
        return tuple(sorted({tensor.type.name for tensor in self.tensors.values() if len(tensor.shape) > 1}))


def _nearest(name: str, names: Mapping[str, object]) -> str:
    """What to add to a message about a name that is not there; names of the same block come first."""
    block = name.rpartition(".mlp.")[0] or name.rpartition(".attn.")[0] or name.partition(".")[0]
    near = nearest(name, sorted(names, key=lambda other: not other.startswith(block)))
    return f"; the nearest name found is {near}" if near else ""
