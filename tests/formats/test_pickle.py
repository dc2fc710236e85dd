"""Torch checkpoints: tensors come out, and nothing that a pickle asks for is ever done."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.errors import FormatError, TruncatedFile, UnsafeFile
from vitral.formats.pickle import read_torch

torch = pytest.importorskip("torch")


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def packed(path: Path, program: bytes, storages: dict[str, bytes] | None = None, method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_of_every_float_type_come_out(tmp_path: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"t{i}": torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for i, shape in
             enumerate([(3, 5), (7,), (2, 3, 4), ()])}  # fmt: skip
    found = read_torch(saved(tmp_path / "m.pth", state)).tensors
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].read().tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_views_slices_and_turned_matrices_are_read_as_torch_means_them(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"whole": whole, "rows": whole[1:3], "turned": whole.T, "columns": whole[:, 2:5], "again": whole}
    found = read_torch(saved(tmp_path / "m.pth", state))
    for name, tensor in state.items():
        assert found.tensors[name].dequantize().tolist() == tensor.tolist(), name
    assert found.same_as == {"again": "whole"}


def test_an_ordered_dictionary_of_parameters_is_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    found = read_torch(saved(tmp_path / "m.bin", module.state_dict())).tensors
    assert np.array_equal(found["weight"].dequantize(), module.weight.detach().numpy())
    state = collections.OrderedDict(w=module.weight)
    assert read_torch(saved(tmp_path / "n.bin", state)).tensors["w"].shape == (2, 3)


class Runs:
    """Pickles to a call of `function` when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_call_is_refused_and_not_made(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    for what in (Runs(os.system, f"touch {trace}"), Runs(eval, "1"), Runs(getattr, "a", "upper")):
        program = pickle.dumps({"x": what}, protocol=protocol)
        with pytest.raises(UnsafeFile, match="asks to call .* may be an attack"):
            read_torch(packed(tmp_path / "m.pth", program))
    assert not trace.exists()


def test_torch_files_with_other_things_than_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="torch.LongStorage; allowed: Float, Half and BFloat16"):
        read_torch(saved(tmp_path / "a", {"x": torch.ones(2, dtype=torch.int64)}))
    with pytest.raises(FormatError, match="entry 'x' is no tensor"):
        read_torch(saved(tmp_path / "b", {"x": 5}))
    with pytest.raises(FormatError, match="a dictionary of tensors is wanted"):
        read_torch(saved(tmp_path / "c", [torch.ones(2)]))
    with pytest.raises(UnsafeFile, match="asks to call torch.nn.modules.linear.Linear"):
        read_torch(saved(tmp_path / "d", torch.nn.Linear(2, 2)))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    file = packed(tmp_path / "m", pickle.dumps({}, protocol=2) + bytes(1000), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFile, match="is compressed or encrypted"):
        read_torch(file)


def reference(key: str, n: int, storage: str = "FloatStorage") -> bytes:
    return (
        b"(X\x07\0\0\0storagectorch\n" + storage.encode() + b"\nX" + len(key).to_bytes(4, "little") + key.encode()
        + b"X\x03\0\0\0cpuJ" + n.to_bytes(4, "little", signed=True) + b"tQ"
    )  # fmt: skip


def rebuilt(storage: bytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + v.to_bytes(4, "little", signed=True) for v in values) + b"t"

    return (
        b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J"
        + offset.to_bytes(4, "little", signed=True) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def test_a_pickle_written_by_hand_is_understood(tmp_path: Path) -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    file = packed(tmp_path / "m", rebuilt(reference("0", 6), 1, (2, 2), (2, 1)), {"0": data})
    assert read_torch(file).tensors["x"].dequantize().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "n", "said"),
    [
        (0, (3, 3), (3, 1), 6, "does not fit its storage of 6"),
        (5, (2,), (1,), 6, "does not fit its storage"),
        (0, (1000, 1000), (0, 0), 6, "does not fit its storage"),
        (-1, (2,), (1,), 6, "arguments that torch never writes"),
        (0, (2,), (-1,), 6, "arguments that torch never writes"),
        (0, (2, 2), (1,), 6, "arguments that torch never writes"),
        (0, (0,), (1,), 6, "does not fit its storage"),
        (0, (2,), (1,), 7, "24 bytes, 28 are announced"),
        (0, (2,), (1,), -1, "something else than a storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], n: int, said: str
) -> None:
    file = packed(tmp_path / "m", rebuilt(reference("0", n), offset, shape, stride), {"0": bytes(24)})
    with pytest.raises(FormatError, match=said):
        read_torch(file)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (b"", "no end|damaged"),
        (b"\x80\x02}", "no end|damaged"),
        (b"\x80\x02.", "takes a value that is not there"),
        (b"\x80\x02h\x05.", "takes a value that is not there"),
        (b"\x80\x02}q\x00(h\x00h\x00u.", "key that is a dict"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "holds a list"),
        (b"\x80\x02\x8e" + (1 << 62).to_bytes(8, "little") + b"x.", "damaged"),
        (b"\x80\x02(X\x01\0\0\0aK\x01d.", "instruction DICT"),
        (b"\x80\x02X\x01\0\0\0a0.", "instruction POP"),
        (b"\x80\x02\x8a\x02\x01", "damaged|no end"),
        (b"L" + b"9" * 5000 + b"L\n.", "damaged|instruction LONG"),
        (b"\x80\x02}(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02u.", "key 'a' appears twice"),
    ],
)
def test_a_damaged_pickle_is_a_typed_error(tmp_path: Path, program: bytes, said: str) -> None:
    with pytest.raises((FormatError, UnsafeFile), match=said):
        read_torch(packed(tmp_path / "m", program))


def test_sizes_are_capped(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match="data.pkl has .* bytes; at most 8388608"):
        read_torch(packed(tmp_path / "a", bytes((8 << 20) + 1)))
    with pytest.raises(UnsafeFile, match="over 2097152 instructions"):
        read_torch(packed(tmp_path / "b", b"\x80\x02" + b"N" * (1 << 21) + b"."))


def test_a_cut_archive_is_truncated(tmp_path: Path) -> None:
    file = saved(tmp_path / "m", {"x": torch.ones(1000)})
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFile, match="no directory at its end"):
        read_torch(file)


def test_a_zip_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "m").write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match="a ZIP archive but no torch checkpoint"):
        read_torch(tmp_path / "m")


def test_a_storage_that_was_changed_in_the_pickle_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path / "m", {"x": torch.ones(4)})
    data = bytearray(file.read_bytes())
    at = data.find(b"FloatStorage")
    data[at : at + 12] = b"HloatStorage"
    file.write_bytes(data)
    with pytest.raises(FormatError, match="data.pkl does not match its checksum"):
        read_torch(file)
