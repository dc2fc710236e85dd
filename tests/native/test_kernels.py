"""Every kernel gives the bits of the law."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from vitral.formats import quants
from vitral.model import law
from vitral.model.law import F32, Quantised
from vitral.native import available
from vitral.native import kernels as native

# The places of float16 numbers in a block: scales, which random bytes would make infinite.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
ALL = native.kernels()


def of(op: str) -> list[native.Kernel]:
    return [kernel for kernel in ALL if kernel.op == op]


def name(kernel: native.Kernel) -> str:
    return f"{kernel.type}-{kernel.isa}" if kernel.type else kernel.isa


def weight(type_: str, rows: int, cols: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes, every code and sub-scale equally likely; scales small and of both signs."""
    rng = np.random.default_rng(seed)
    if type_ in FLOATS:
        x = rng.standard_normal((rows, cols)).astype(np.float32)
        if type_ == "BF16":
            return np.ascontiguousarray((x.view(np.uint32) >> 16).astype("<u2")).view(np.uint8)
        return np.ascontiguousarray(x.astype("<f2" if type_ == "F16" else "<f4")).view(np.uint8)
    info = quants.TYPES[type_]
    raw = rng.integers(0, 256, (rows, cols // info.block, info.bytes_per_block), dtype=np.uint8)
    for at in HALVES[type_]:
        halves = (rng.standard_normal(raw.shape[:2]) * 0.1).astype("<f2")
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def block(type_: str) -> int:
    return 32 if type_ in FLOATS else quants.TYPES[type_].block


def same_bits(ours: F32, theirs: F32) -> bool:
    """Bit for bit; a NaN equals any NaN (hardware chooses its payload)."""
    equal = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    return ours.shape == theirs.shape and bool(equal.all())


@functools.cache
def case(type_: str, rows: int, cols: int, tokens: int) -> tuple[NDArray[np.uint8], F32, F32]:
    raw = weight(type_, rows, cols, seed=rows + cols)
    x = np.random.default_rng(tokens).standard_normal((tokens, cols)).astype(np.float32)
    return raw, x, law.linear(quants.decode(type_, raw), x)


@pytest.mark.parametrize("kernel", of("matmul"), ids=name)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 50])
def test_product_equals_law_for_any_number_of_weight_rows(kernel: native.Kernel, rows: int) -> None:
    raw, x, expected = case(kernel.type, rows, 2 * block(kernel.type), 3)
    for threads in (1, 2):
        out = native.matmul(native.pack(kernel.type, raw, threads=threads), x, threads=threads, isa=kernel.isa)
        assert same_bits(out, expected)


@pytest.mark.parametrize("kernel", of("matmul"), ids=name)
@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_product_equals_law_for_any_number_of_columns(kernel: native.Kernel, blocks: int) -> None:
    raw, x, expected = case(kernel.type, 33, blocks * block(kernel.type), 5)
    assert same_bits(native.matmul(native.pack(kernel.type, raw), x, threads=2, isa=kernel.isa), expected)


@pytest.mark.parametrize("kernel", [k for k in of("matmul") if k.type in FLOATS], ids=name)
@pytest.mark.parametrize("cols", [1, 2, 15, 16, 17, 31, 48, 100])
def test_float_product_equals_law_where_columns_do_not_fill_a_vector(kernel: native.Kernel, cols: int) -> None:
    raw, x, expected = case(kernel.type, 7, cols, 5)
    assert same_bits(native.matmul(native.pack(kernel.type, raw), x, threads=2, isa=kernel.isa), expected)


@pytest.mark.parametrize("kernel", of("matmul"), ids=name)
def test_product_equals_law_for_any_number_of_tokens(kernel: native.Kernel) -> None:
    raw, x, expected = case(kernel.type, 40, block(kernel.type), 49)
    packed = native.pack(kernel.type, raw)
    for tokens in [*range(1, 18), 31, 32, 33, 47, 48, 49]:
        assert same_bits(native.matmul(packed, x[:tokens], threads=1 + tokens % 2, isa=kernel.isa), expected[:tokens])


@pytest.mark.parametrize("kernel", of("matmul"), ids=name)
def test_product_equals_law_on_strange_activations(kernel: native.Kernel) -> None:
    raw = weight(kernel.type, 20, block(kernel.type))
    x = strange_rows(block(kernel.type))
    with np.errstate(all="ignore"):
        expected = law.linear(quants.decode(kernel.type, raw), x)
    assert same_bits(native.matmul(native.pack(kernel.type, raw), x, isa=kernel.isa), expected)


def strange_rows(cols: int) -> F32:
    tiny, huge = np.float32(1e-44), np.finfo(np.float32).max
    x = np.random.default_rng(7).standard_normal((12, cols)).astype(np.float32)
    x[0] = 0
    x[1] = -0.0
    x[2, 3] = np.nan
    x[3, cols - 1] = np.inf
    x[4, 0] = -np.inf
    x[5] = tiny
    x[6] *= np.float32(2.0**-120)
    x[7] = huge
    x[8, 1::2] = -huge
    x[9] = np.float32(2.0**-122)
    x[10] = np.rint(x[10] * 40)  # ties: codes halfway between two integers
    x[10, 0] = 254
    x[11, 5], x[11, 6] = np.inf, -np.inf
    return x


@pytest.mark.parametrize("kernel", of("quantise"), ids=name)
@pytest.mark.parametrize("cols", [32, 96, 1024])
def test_quantised_activations_equal_law(kernel: native.Kernel, cols: int) -> None:
    x = np.concatenate([strange_rows(cols), np.random.default_rng(cols).standard_normal((20, cols)).astype(np.float32)])
    codes, scales = native.quantise_rows(x, isa=kernel.isa)
    expected_codes, expected_scales = law.quantise_rows(x)
    assert np.array_equal(codes, expected_codes)
    assert same_bits(scales, expected_scales)


@pytest.mark.parametrize("kernel", of("unpack"), ids=name)
def test_panels_hold_what_the_file_says(kernel: native.Kernel) -> None:
    raw = weight(kernel.type, 21, 2 * block(kernel.type))
    expected = quants.decode(kernel.type, raw)
    assert isinstance(expected, Quantised)
    found = native.unpack(native.pack(kernel.type, raw, threads=2), isa=kernel.isa)
    assert np.array_equal(found.codes, expected.codes)
    assert same_bits(found.scales, expected.scales)
    assert found.group == expected.group
    assert (found.minima is None) == (expected.minima is None)
    if found.minima is not None and expected.minima is not None:
        assert same_bits(found.minima, expected.minima)


@pytest.mark.parametrize("kernel", of("row"), ids=name)
def test_rows_equal_the_dequantised_matrix(kernel: native.Kernel) -> None:
    raw = weight(kernel.type, 19, 2 * block(kernel.type))
    decoded = quants.decode(kernel.type, raw)
    expected = decoded.dequantize() if isinstance(decoded, Quantised) else decoded
    which = np.array([18, 0, 7, 7, 16], np.int64)
    assert same_bits(native.rows_of(native.pack(kernel.type, raw), which, isa=kernel.isa), expected[which])


@pytest.mark.parametrize("type_", HALVES)
def test_packed_weight_is_not_larger_than_the_file(type_: str) -> None:
    raw = weight(type_, 64, 1024)
    assert native.pack(type_, raw).nbytes <= 1.05 * raw.nbytes


def test_largest_codes_do_not_saturate() -> None:
    """255 x 127 twice does not fit 16 bits: where an instruction adds pairs there, it would clip."""
    raw = np.full((16, 34), 127, np.uint8)
    raw[:, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    x = np.full((9, 32), 127, np.float32)
    expected = law.linear(quants.decode("Q8_0", raw), x)
    assert expected[0, 0] == 127 * 127 * 32
    for isa in available():
        assert same_bits(native.matmul(native.pack("Q8_0", raw), x, isa=isa), expected)


def test_wrong_arguments_are_named() -> None:
    packed = native.pack("Q8_0", np.zeros((16, 34), np.uint8))
    with pytest.raises(ValueError, match=r"x: expected \(T, 32\) for this weight, found \(1, 64\)"):
        native.matmul(packed, np.zeros((1, 64), np.float32))
    with pytest.raises(ValueError, match="x: expected float32"):
        native.matmul(packed, np.zeros((1, 32)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="raw: expected uint8"):
        native.pack("Q8_0", np.zeros(34, np.uint8))
    with pytest.raises(ValueError, match="34 bytes, found 35"):
        native.pack("Q8_0", np.zeros((1, 35), np.uint8))
    with pytest.raises(ValueError, match="'Q9_9' does not exist"):
        native.pack("Q9_9", np.zeros((1, 34), np.uint8))
    with pytest.raises(ValueError, match="threads: expected 1 to 1024, found 0"):
        native.matmul(packed, np.zeros((1, 32), np.float32), threads=0)
    with pytest.raises(ValueError, match="which: expected rows 0 to 15, found 3 to 16"):
        native.rows_of(packed, np.array([3, 16]))
    with pytest.raises(ValueError, match="multiple of 32"):
        native.quantise_rows(np.zeros((1, 33), np.float32))
