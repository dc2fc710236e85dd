"""Results as an Arrow IPC file (https://arrow.apache.org/docs/format/Columnar.html): one row for each array.

Columns: `name`; `shape`; and the numbers, row-major, in the column of their type (`float32`, `float64`, `int32`,
`int64`), null in the others. The schema's metadata holds the notes. pyarrow does it, of the extra `arrow`: it is large,
and nothing else needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, SettingsError

__all__ = ["ARROW_MEDIA_TYPE", "arrays_as_arrow", "arrays_of_arrow"]

ARROW_MEDIA_TYPE = "application/vnd.apache.arrow.file"
_TYPES = ("float32", "float64", "int32", "int64")


def arrays_as_arrow(arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, str] | None = None) -> bytes:
    """Arrays of float32, float64, int32 or int64 as one file's bytes.

    FormatError for another type, SettingsError without the extra `arrow`.

    >>> found, notes = arrays_of_arrow(arrays_as_arrow({"a": np.arange(4, dtype=np.int32).reshape(2, 2)}, {"of": "me"}))
    >>> found["a"].tolist(), notes
    ([[0, 1], [2, 3]], {'of': 'me'})
    """
    pa = _pyarrow()
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES:
            raise FormatError(f"array {name!r} is of type {array.dtype}; allowed: {', '.join(_TYPES)}")
    columns = {
        "name": pa.array(list(arrays), pa.string()),
        "shape": pa.array([list(array.shape) for array in arrays.values()], pa.list_(pa.int64())),
    }
    for kind in _TYPES:
        mine = [array.ravel() if array.dtype.name == kind else None for array in arrays.values()]
        numbers = np.concatenate([np.zeros(0, kind), *(one for one in mine if one is not None)])
        ends = np.cumsum([0, *(0 if one is None else one.size for one in mine)])
        columns[kind] = pa.LargeListArray.from_arrays(
            pa.array(ends, pa.int64()), pa.array(numbers), mask=pa.array([one is None for one in mine], pa.bool_())
        )
    table = pa.table(columns).replace_schema_metadata(dict(notes or {}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def arrays_of_arrow(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the notes; FormatError for a file that `arrays_as_arrow` did not write."""
    pa = _pyarrow()
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        rows = table.select(["name", "shape", *_TYPES])
        found = {}
        for i, (name, shape) in enumerate(zip(rows["name"].to_pylist(), rows["shape"].to_pylist(), strict=True)):
            kind = next(kind for kind in _TYPES if rows[kind][i].is_valid)
            found[name] = rows[kind][i].values.to_numpy().reshape(shape)
    except (pa.ArrowException, KeyError, StopIteration, ValueError, TypeError) as error:
        raise FormatError(
            f"this is no Arrow file of arrays ({error}); allowed: the columns name, shape, {', '.join(_TYPES)}"
        ) from error
    return found, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError:
        raise SettingsError("Arrow files need pyarrow: pip install 'vitral[arrow]', or take safetensors") from None
    return pa
