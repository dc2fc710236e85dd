"""Encoders: what is written can be read, errors are small and reported, hard cases keep their values.

The comparison with ggml's encoders is `benchmarks/quantise_error.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from vitral.errors import FormatError
from vitral.formats.quantize import encode, quantize_tensor
from vitral.formats.quants import TYPES, decode
from vitral.model.law import F32, Quantised

QUANTISED = [name for name, info in TYPES.items() if info.block > 1]
# Relative error of normal values; measured, with a margin of a tenth. Fewer bits, larger errors.
LARGEST_ERROR = {
    "Q8_0": 0.0055, "Q6_K": 0.02, "Q5_K": 0.039, "Q5_1": 0.039, "Q5_0": 0.043, "Q4_K": 0.077, "Q4_1": 0.077,
    "Q4_0": 0.088, "IQ4_NL": 0.078, "IQ4_XS": 0.08, "Q3_K": 0.17, "Q2_K": 0.31,
}  # fmt: skip


def values_of(name: str, raw: np.ndarray) -> F32:
    read = decode(name, raw)
    return read.dequantize() if isinstance(read, Quantised) else read


def relative_error(name: str, values: F32, importance: F32 | None = None) -> float:
    w = np.ones(values.shape[1]) if importance is None else importance
    difference = values_of(name, encode(name, values, importance)).astype(np.float64) - values
    return float(np.sqrt((difference**2 @ w).sum() / (values.astype(np.float64) ** 2 @ w).sum()))


@pytest.mark.parametrize("name", QUANTISED)
def test_normal_values_come_back_within_the_types_error(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    error = relative_error(name, values)
    assert LARGEST_ERROR[name] * 0.75 < error < LARGEST_ERROR[name]


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-6, 300.0])
@pytest.mark.parametrize("name", QUANTISED)
def test_equal_values_come_back(name: str, value: float) -> None:
    """Positive ones became zero in Q2_K, Q4_K and Q5_K, whose minima cannot be above zero."""
    values = np.full((1, 256), value, np.float32)
    tiny = 2.0**-24 / value if value < 1e-4 else 0.0  # the smallest scale in float16
    assert relative_error(name, values) < 1e-3 + 40 * tiny


@pytest.mark.parametrize("name", QUANTISED)
def test_zeros_stay_zero_and_an_outlier_survives(name: str) -> None:
    values = np.zeros((2, 256), np.float32)
    values[1, 77] = 5.0
    found = values_of(name, encode(name, values))
    assert not found[0].any()
    assert found[1, 77] == pytest.approx(5.0, rel=2e-3)
    around = np.delete(found[1], 77)
    assert np.abs(around).max() < (0.05 if name.startswith("IQ4") else 1e-9), "IQ4 types have no code for zero"


@pytest.mark.parametrize("name", QUANTISED)
def test_rounding_again_hardly_moves_what_the_type_said_once(name: str) -> None:
    rng = np.random.default_rng(3)
    raw = encode(name, rng.standard_normal((4, 512)).astype(np.float32))
    once = values_of(name, raw)
    again = values_of(name, encode(name, once))
    assert np.sqrt(((again - once) ** 2).mean()) < 0.15 * LARGEST_ERROR[name] * np.sqrt((once**2).mean())


@pytest.mark.parametrize("name", QUANTISED)
def test_importance_moves_the_error_to_columns_that_matter_less(name: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((32, 512)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(512)).astype(np.float32)
    difference = values_of(name, encode(name, values)).astype(np.float64) - values
    plain = float(np.sqrt((difference**2 @ importance).sum() / (values.astype(np.float64) ** 2 @ importance).sum()))
    assert relative_error(name, values, importance) < 0.97 * plain


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_bytes_do_not_depend_on_threads(name: str) -> None:
    values = np.random.default_rng(2).standard_normal((300, 512)).astype(np.float32)
    assert encode(name, values, threads=1).tobytes() == encode(name, values, threads=3).tobytes()


def test_the_report_is_the_error_of_the_bytes() -> None:
    values = np.random.default_rng(4).standard_normal((8, 256)).astype(np.float32)
    importance = np.linspace(0, 1, 256, dtype=np.float32)
    raw, error = quantize_tensor(values, "Q3_K", importance, name="t")
    difference = values_of("Q3_K", raw).astype(np.float64) - values
    assert error.rmse == pytest.approx(float(np.sqrt((difference**2).mean())), rel=1e-5)
    assert error.relative == pytest.approx(
        error.rmse / float(np.sqrt((values.astype(np.float64) ** 2).mean())), rel=1e-5
    )
    assert error.largest == pytest.approx(float(np.abs(difference).max()), rel=1e-5)
    weighted = (difference**2 @ importance).sum() / (values.astype(np.float64) ** 2 @ importance).sum()
    assert error.weighted == pytest.approx(float(np.sqrt(weighted)), rel=1e-5)


def test_what_cannot_be_encoded_is_refused() -> None:
    good = np.ones((2, 256), np.float32)
    for bad in (np.nan, np.inf):
        values = good.copy()
        values[1, 3] = bad
        with pytest.raises(FormatError, match="cannot hold infinities or NaN"):
            encode("Q4_K", values)
    with pytest.raises(FormatError, match="wants rows of a multiple of 256"):
        encode("Q4_K", np.ones((2, 255), np.float32))
    with pytest.raises(FormatError, match="F16 holds magnitudes up to 65504"):
        encode("F16", good * 1e6)
    for importance in (np.ones(255), -np.ones(256), np.zeros(256), np.full(256, np.nan)):
        with pytest.raises(FormatError, match="importance wants"):
            encode("Q4_K", good, importance.astype(np.float32))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_types_round_to_nearest(name: str) -> None:
    values = np.random.default_rng(5).standard_normal((4, 64)).astype(np.float32)
    bits = {"F32": 24, "F16": 11, "BF16": 8}[name]
    found = values_of(name, encode(name, values))
    assert np.abs(found - values).max() <= np.abs(values).max() * 2.0**-bits
    assert values_of(name, encode(name, found)).tobytes() == found.tobytes()
