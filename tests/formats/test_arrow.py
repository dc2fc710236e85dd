"""Arrays as Arrow: what is read is what was written, by us and by pyarrow alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vitral.errors import FormatError, SettingsError
from vitral.formats.arrow import arrays_as_arrow, arrays_of_arrow

ARRAYS = {
    "blocks.0.hook_resid_post": np.arange(6, dtype=np.float32).reshape(2, 3),
    "blocks.0.attn.hook_attn_scores": np.array([[[0.5, -np.inf], [np.nan, 1]]], np.float32),
    "positions": np.array([3, 1 << 40], np.int64),
    "experts": np.zeros((0, 2), np.int32),
    "one": np.array(2.5, np.float64),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def test_arrays_of_every_type_and_shape_come_back() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra arrow, is not installed")
    found, notes = arrays_of_arrow(arrays_as_arrow(ARRAYS, {"ids": "[1]"}))
    assert notes == {"ids": "[1]"} and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_pyarrow_alone_reads_names_and_numbers() -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow, of the extra arrow, is not installed")
    table = pa.ipc.open_file(arrays_as_arrow(ARRAYS)).read_all()
    row = table.slice(0, 1).to_pylist()[0]
    assert row["name"] == "blocks.0.hook_resid_post" and row["shape"] == [2, 3]
    assert row["float32"] == [0, 1, 2, 3, 4, 5] and row["int32"] is None


def test_what_it_cannot_write_or_read_is_said() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra arrow, is not installed")
    with pytest.raises(FormatError, match="'a' is of type complex64; allowed: float32"):
        arrays_as_arrow({"a": np.zeros(1, np.complex64)})
    for bad in (b"", b"ARROW1\0\0", arrays_as_arrow(ARRAYS)[:-9]):
        with pytest.raises(FormatError, match="no Arrow file of arrays"):
            arrays_of_arrow(bad)


def test_without_pyarrow_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingsError, match=r"pip install 'vitral\[arrow\]'"):
        arrays_as_arrow(ARRAYS)
