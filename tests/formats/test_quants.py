"""Dequantised values equal those of the package `gguf`, bit for bit, for every type."""

from __future__ import annotations

import numpy as np
import pytest

from vitral.errors import FormatError
from vitral.formats.quants import TYPES, decode, row_bytes
from vitral.model.law import Quantised

gguf = pytest.importorskip("gguf")


def random_rows(name: str, rows: int, blocks: int, seed: int, extreme: bool = False) -> np.ndarray:
    """Random bytes; unless `extreme`, f16 scales are kept finite."""
    rng = np.random.default_rng(seed)
    info = TYPES[name]
    raw = rng.integers(0, 256, (rows, blocks, info.bytes_per_block), dtype=np.uint8)
    if not extreme:
        for at in HALVES.get(name, ()):
            values = (rng.standard_normal((rows, blocks, 1)) / 50).astype(np.float16)
            raw[..., at : at + 2] = values.view(np.uint8)
    return raw.reshape(rows, -1)


HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
}  # fmt: skip


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_values_equal_the_gguf_package(name: str, extreme: bool) -> None:
    blocks = 8 if TYPES[name].block > 1 else 256
    with np.errstate(all="ignore"):
        raw = random_rows(name, 64, blocks, seed=len(name), extreme=extreme)
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        ours = decode(name, raw)
        values = ours.dequantize() if isinstance(ours, Quantised) else ours
    assert values.shape == theirs.shape
    same = (values.view(np.uint32) == theirs.astype(np.float32).view(np.uint32)) | (np.isnan(values) & np.isnan(theirs))
    assert same.all()


@pytest.mark.parametrize("name", TYPES)
def test_sizes_equal_the_gguf_package(name: str) -> None:
    theirs = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (TYPES[name].block, TYPES[name].bytes_per_block) == theirs
    assert gguf.GGMLQuantizationType[name].value == TYPES[name].ggml_id


def test_a_row_is_whole_blocks() -> None:
    with pytest.raises(FormatError, match="Q4_K wants rows of a multiple of 256 elements, found 300"):
        row_bytes("Q4_K", 300)
    with pytest.raises(FormatError, match="Q4_0 wants rows of a multiple of 18 bytes"):
        decode("Q4_0", np.zeros((1, 17), np.uint8))


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(FormatError, match="Q4_K"):
        row_bytes("Q4_KM", 256)
