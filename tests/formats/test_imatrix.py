"""Importance files: what is written is read, in llama.cpp's layout; hostile ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitral.errors import FormatError
from vitral.formats.gguf import GgufFile
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.imatrix import Imatrix, Sums, is_imatrix, read_imatrix, write_imatrix
from vitral.formats.quants import TYPES


def sums(count: int, *squares: float) -> Sums:
    return Sums(np.array(squares), count)


def test_what_is_written_is_read_again_experts_under_one_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written = Imatrix(
        {
            "blocks.0.attn.q.weight": sums(1024, 1.5, 2.0, 0.0),
            "blocks.0.mlp.experts.0.down.weight": sums(1000, 3.0, 4.0),
            "blocks.0.mlp.experts.1.down.weight": sums(0, 0.0, 0.0),
        },
        ["wiki.txt"],
        512,
        2,
    )
    write_imatrix(path, written)
    assert is_imatrix(path)
    file = GgufFile.open(path)
    assert file.tensors["blk.0.ffn_down_exps.weight.in_sum2"].shape == (2, 2)
    assert file.tensors["blk.0.ffn_down_exps.weight.counts"].shape == (2, 1)
    assert (file.metadata["general.type"], file.metadata["imatrix.chunk_size"]) == ("imatrix", 512)
    found = read_imatrix(path)
    assert (found.datasets, found.window, found.n_windows, found.skipped) == (["wiki.txt"], 512, 2, [])
    for name, one in written.sums.items():
        assert found.sums[name].count == one.count
        assert found.sums[name].squares.tolist() == one.squares.tolist()
    assert found.means().keys() == {"blocks.0.attn.q.weight", "blocks.0.mlp.experts.0.down.weight"}


@pytest.mark.parametrize(
    ("names", "values", "said"),
    [
        (["blk.0.attn_q.weight.in_sum2"], [[1.0]], "has no partner"),
        (["blk.0.attn_q.weight.counts"], [[1.0]], "has no partner"),
        (["blk.0.attn_q.weight"], [[1.0]], "has no partner"),
        (["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"], [[1.0, -1.0], [1.0]], "not negative"),
        (["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"], [[1.0, np.nan], [1.0]], "not negative"),
        (["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"], [[1.0, 2.0, 3.0], [1.0, 1.0]], "whole rows"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, names: list[str], values: list[list[float]], said: str) -> None:
    path = tmp_path / "m.gguf"
    tensors = []
    for name, row in zip(names, values, strict=True):
        raw = np.array(row, "<f4")
        tensors.append(TensorToWrite(name, raw.shape, TYPES["F32"], lambda raw=raw: raw.view(np.uint8)))  # type: ignore[misc]
    write_gguf(path, {"general.type": "imatrix"}, tensors)
    with pytest.raises(FormatError, match=said):
        read_imatrix(path)


def test_a_model_is_no_importance_file_and_strange_tensors_are_listed(tmp_path: Path) -> None:
    raw = np.ones(2, "<f4")
    names = ["blk.0.ssm.weight.in_sum2", "blk.0.ssm.weight.counts"]
    tensors = [TensorToWrite(name, (2,), TYPES["F32"], lambda: raw.view(np.uint8)) for name in names]
    write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, tensors)
    with pytest.raises(FormatError, match="no importance matrix"):
        read_imatrix(tmp_path / "model.gguf")
    write_gguf(tmp_path / "m.gguf", {"general.type": "imatrix"}, tensors)
    assert read_imatrix(tmp_path / "m.gguf").skipped == ["blk.0.ssm.weight.in_sum2"]


def test_numbers_where_the_type_of_the_file_should_stand_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = np.ones(4, "<f4").view(np.uint8)
    tensors = [TensorToWrite("x", (4,), TYPES["F32"], lambda: raw)]
    write_gguf(path, {"general.type": np.array([1, 2], np.int32)}, tensors)
    with pytest.raises(FormatError, match="no importance matrix"):
        read_imatrix(path)
