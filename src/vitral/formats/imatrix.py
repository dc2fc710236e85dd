"""Importance of columns: how large the inputs of each matrix are on some text, and the file that keeps it.

An error in column k of a matrix costs in proportion to the mean square of the input that it is
multiplied with. `vitral.importance` measures the sums from a text; this file holds them, reads and
writes them as llama.cpp's `llama-imatrix` does (GGUF with `NAME.in_sum2` and `NAME.counts`), so that
either program quantises with what the other measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError
from vitral.formats.gguf import GgufFile, GgufTensor
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.mapping import canonical_from_gguf, gguf_name
from vitral.formats.metadata_text import first_text
from vitral.formats.quants import TYPES
from vitral.model.law import F32

__all__ = ["Imatrix", "Sums", "is_imatrix", "read_imatrix", "write_imatrix"]

F64 = NDArray[np.float64]
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(slots=True)
class Sums:
    """Squares of one matrix's inputs (K,), summed over `count` tokens."""

    squares: F64
    count: int


@dataclass(slots=True)
class Imatrix:
    """Sums for each matrix by our name, what they were measured on, and in windows of how many tokens."""

    sums: dict[str, Sums]
    datasets: Sequence[str] = ()
    window: int = 512
    n_windows: int = 0
    skipped: list[str] = field(default_factory=list)

    def means(self) -> dict[str, F32]:
        """One number for each column, as the encoders want it; matrices that met no token are left out.

        >>> Imatrix({"a": Sums(np.array([8.0, 0.5]), 2), "b": Sums(np.zeros(2), 0)}).means()
        {'a': array([4.  , 0.25], dtype=float32)}
        """
        return {
            name: (sums.squares / sums.count).astype(np.float32)
            for name, sums in self.sums.items()
            if sums.count and sums.squares.any()
        }


def is_imatrix(path: Path) -> bool:
    """Whether a file begins as a GGUF file does; a text never does.

    >>> is_imatrix(Path("/nonexistent"))
    False
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_imatrix(path: Path) -> Imatrix:
    """Read what `llama-imatrix` or `write_imatrix` wrote.

    Tensors that are none of this architecture's are listed in `skipped`. Raises FormatError for a
    file that holds something else, and for sums that are negative or not finite.
    """
    file = GgufFile.open(path)
    if first_text(file.metadata, "general.type") != "imatrix":
        raise FormatError(f"{path} is a GGUF file but no importance matrix; give one, or a text to compute it from")
    datasets = file.metadata.get("imatrix.datasets", [])
    found = Imatrix(
        {},
        datasets if isinstance(datasets, list) else [],
        file.number("imatrix.chunk_size") or 0,
        file.number("imatrix.chunk_count") or 0,
    )
    for full, tensor in file.tensors.items():
        if full.endswith(_COUNTS) and full.removesuffix(_COUNTS) + _SUMS in file.tensors:
            continue
        counts = file.tensors.get(full.removesuffix(_SUMS) + _COUNTS)
        if not full.endswith(_SUMS) or counts is None:
            raise FormatError(f"{path}: tensor {full!r:.80} has no partner; each NAME{_SUMS} wants a NAME{_COUNTS}")
        squares, n = _floats(path, tensor), _floats(path, counts)
        if squares.size % n.size or not all(np.isfinite(x).all() and (x >= 0).all() for x in (squares, n)):
            raise FormatError(f"{path}: {full!r:.80} must be whole rows of finite numbers that are not negative")
        name = canonical_from_gguf(full.removesuffix(_SUMS))
        if name is None:
            found.skipped.append(full)
            continue
        for e, row in enumerate(squares.reshape(n.size, -1)):
            one = name.replace("*", str(e))
            if one in found.sums:
                raise FormatError(f"{path}: {full!r:.80} gives {one}, which stands there already")
            found.sums[one] = Sums(row, int(n[e]))
    return found


def _floats(path: Path, tensor: GgufTensor) -> F64:
    if tensor.type.name != "F32":
        raise FormatError(f"{path}: tensor {tensor.name!r:.80} is {tensor.type.name}; sums and counts are F32")
    return tensor.raw().view("<f4").reshape(-1).astype(np.float64)


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write the file that `llama-quantize --imatrix` and `vitral quantize --importance` read."""
    groups: dict[str, list[Sums]] = {}
    for name, sums in imatrix.sums.items():  # the experts of a layer share one name, in their order
        groups.setdefault(gguf_name(name), []).append(sums)
    tensors: list[TensorToWrite] = []
    for name, group in sorted(groups.items()):
        squares = np.stack([sums.squares for sums in group]).astype("<f4")
        counts = np.array([[sums.count] for sums in group], "<f4")
        for suffix, values in ((_SUMS, squares), (_COUNTS, counts)):
            tensors.append(TensorToWrite(name + suffix, values.shape, TYPES["F32"], partial(values.view, np.uint8)))
    metadata: Mapping[str, object] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(imatrix.datasets),
        "imatrix.chunk_count": imatrix.n_windows,
        "imatrix.chunk_size": imatrix.window,
    }
    write_gguf(path, metadata, tensors)
