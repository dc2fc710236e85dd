"""Safetensors: what the library writes we read, what we write it reads, and the rest is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.errors import FormatError, TensorMismatch, TruncatedFile
from vitral.formats.safetensors import arrays_as_safetensors, read_index, read_safetensors, write_safetensors

safetensors_numpy = pytest.importorskip("safetensors.numpy")

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 5)).astype(np.float32),
    "b": RNG.standard_normal(7).astype(np.float16),
    "scalar": np.array(2.5, np.float32),
    "three": RNG.standard_normal((2, 3, 4)).astype(np.float32),
}


def assemble(path: Path, header: Any, data: bytes, size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    safetensors_numpy.save_file(ARRAYS, file, metadata={"format": "pt"})
    found = read_safetensors(file)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert found[name].read().tobytes() == array.tobytes()


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    types = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    tensors = [
        (name, types[a.dtype], a.shape, lambda a=a: np.frombuffer(a.tobytes(), np.uint8)) for name, a in ARRAYS.items()
    ]
    [path] = write_safetensors(tmp_path, tensors)
    found = safetensors_numpy.load_file(path)
    assert {name: value.tobytes() for name, value in found.items()} == {n: a.tobytes() for n, a in ARRAYS.items()}


def test_shards_have_an_index_that_brings_them_together(tmp_path: Path) -> None:
    tensors = [(f"t{i}", "F32", (8,), lambda i=i: np.full(8, i, "<f4").view(np.uint8)) for i in range(5)]
    paths = write_safetensors(tmp_path, tensors, shard_bytes=70)
    assert [path.name for path in paths] == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*"))
    found = read_index(paths[-1])
    assert [float(found[f"t{i}"].dequantize()[0]) for i in range(5)] == [0, 1, 2, 3, 4]
    paths[1].unlink()
    with pytest.raises(FormatError, match=r"names model-00002-of-00003\.safetensors, which is missing beside it"):
        read_index(paths[-1])


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    assemble(tmp_path / "a.safetensors", {"x": entry([1], 0, 4), "y": entry([1], 4, 8)}, bytes(8))
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, said in (
        ({"x": "a.safetensors"}, "holds tensor 'y', which .* does not place there"),
        ({"x": "a.safetensors", "y": "a.safetensors", "z": "a.safetensors"}, "places 'z' in a.safetensors, which does"),
        ({"x": "../a.safetensors"}, "allowed: a plain name beside it"),
        ({"x": 1}, "must map tensor names to file names"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((FormatError, TensorMismatch), match=said):
            read_index(index)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"x": entry([2], 0, 8, "I64")}, bytes(8), "'x' is of type 'I64'; allowed: F32, F16, BF16"),
        ({"x": entry([2], 0, 8, "F8_E4M3")}, bytes(8), "quantised safetensors are not read"),
        ({"x": entry([2], 0, 4)}, bytes(4), r"has 4 bytes; F32 of shape \[2\] takes 8"),
        ({"x": entry([1], 0, 4), "y": entry([1], 2, 6)}, bytes(6), "'x' and 'y' overlap at 2"),
        ({"x": entry([1], 4, 8)}, bytes(8), "4 bytes before tensor 'x' belong to none"),
        ({"x": entry([1], 0, 4)}, bytes(8), "the last 4 bytes belong to no tensor"),
        ({"x": entry([1 << 40, 1 << 40], 0, 4)}, bytes(4), "has over"),
        ({"x": entry([-1], 0, 4)}, bytes(4), "whole numbers"),
        ({"x": entry([True], 0, 4)}, bytes(4), "whole numbers"),
        ({"x": {"dtype": "F32"}}, b"", "must have dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, b"", "must map texts to texts"),
        (b'{"x": 1, "x": 2}', b"", "key 'x' appears twice"),
        (b"[" * 100_000, b"", "nested too deeply|not valid JSON|brackets"),
        (b"\xff\xfe{}", b"", "not UTF-8"),
        (b"[]", b"", "holds a list; an object is wanted"),
    ],
)
def test_a_wrong_header_is_refused_by_what_is_wrong(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_safetensors(assemble(tmp_path / "m.safetensors", header, data))


def test_a_file_that_ends_early_is_truncated(tmp_path: Path) -> None:
    header = {"x": entry([4], 0, 16)}
    for file, said in (
        (assemble(tmp_path / "a", header, bytes(12)), "'x' ends 4 bytes after the file"),
        (assemble(tmp_path / "b", header, b"", size=1000), "the header has 1000 bytes"),
    ):
        with pytest.raises(TruncatedFile, match=said):
            read_safetensors(file)
    with pytest.raises(FormatError, match="claims a header of 1099511627776 bytes"):
        read_safetensors(assemble(tmp_path / "c", header, b"", size=1 << 40))


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> np.ndarray:
        raise FormatError("no")

    with pytest.raises(FormatError):
        write_safetensors(tmp_path, [("x", "F32", (1,), broken)])
    with pytest.raises(FormatError, match="safetensors can hold F32, F16, BF16"):
        write_safetensors(tmp_path, [("x", "Q4_0", (32,), broken)])
    assert not list(tmp_path.iterdir())


def test_the_library_reads_results_with_whole_numbers() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(-2, 3, dtype=np.int32),
        "c": np.array([2**40]),
        "none": np.zeros((0, 4)),
    }
    found = safetensors_numpy.load(arrays_as_safetensors(arrays, {"k": "v"}))
    assert {name: (one.dtype, one.shape, one.tolist()) for name, one in found.items()} == {
        name: (one.dtype, one.shape, one.tolist()) for name, one in arrays.items()
    }
    with pytest.raises(FormatError, match="int8"):
        arrays_as_safetensors({"a": np.zeros(1, np.int8)})
