"""The law says what it claims to say: one rounding, stated lanes, exact integers."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitral.model import law
from vitral.model.law import F32, Quantised

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def c_fma() -> object:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    library.fmaf.restype = ctypes.c_float
    library.fmaf.argtypes = [ctypes.c_float] * 3
    return library.fmaf


@settings(max_examples=2000)
@given(finite, finite, finite)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    ours = law.fma(np.float32(a), np.float32(b), np.float32(c))
    theirs = np.float32(c_fma()(a, b, c))  # type: ignore[operator]
    assert ours.tobytes() == theirs.tobytes()


def test_fma_rounds_once_near_cancellation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20_000)).astype(np.float32)
    c = (-a * b * (1 + rng.integers(-3, 4, a.size) * np.float32(2**-23))).astype(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    # the sums are far shorter than 53 bits after cancellation, so float64 holds them
    assert all(Fraction(float(f)) == f for f in exact[:1000])
    assert law.fma(a, b, c).tobytes() == np.array([float(f) for f in exact]).astype(np.float32).tobytes()


def test_lanes_are_what_the_law_says() -> None:
    x = np.random.default_rng(1).standard_normal(53).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for k, value in enumerate(x):
        lanes[k % 16] = np.float32(lanes[k % 16] + value)
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [np.float32(p + q) for p, q in zip(lanes[:half], lanes[half:], strict=True)]
    assert law.lane_sum(x) == lanes[0]


def test_exp_is_within_two_units_of_the_last_place() -> None:
    x = np.linspace(-87, 88, 500_001, dtype=np.float32)
    true = np.exp(x.astype(np.float64))
    assert (np.abs(law.exp(x) - true) / np.spacing(true.astype(np.float32))).max() < 2


def test_exp_at_the_edges() -> None:
    x = np.array([-np.inf, -200, -87.1, 0, 88, 100, np.inf, np.nan], np.float32)
    y = law.exp(x)
    assert y[:4].tolist() == [0, 0, 0, 1]
    assert (y[4:7] == y[4]).all()
    assert np.isnan(y[7])


@given(arrays(np.float32, (3, 64), elements=finite))
def test_quantised_rows_are_within_half_a_step(x: F32) -> None:
    codes, scales = law.quantise_rows(x)
    assert codes.min() >= -127
    steps = np.repeat(scales.astype(np.float64), law.BLOCK, axis=1)
    assert (np.abs(codes * steps - x) <= 0.5001 * steps + 2.0**-120).all()


def test_a_block_that_is_not_finite_becomes_nan_and_touches_no_other() -> None:
    x = np.ones((2, 64), np.float32)
    x[0, 3], x[1, 40] = np.inf, np.nan
    codes, scales = law.quantise_rows(x)
    assert np.isnan(scales).tolist() == [[True, False], [False, True]]
    assert codes[0, :32].any() == codes[1, 32:].any() == False  # noqa: E712


def test_keys_and_values_as_bytes_are_codes_times_half_scales() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)  # a block of 32 dimensions and one of 16
    x[1, 2, 40], x[0, 1, 5] = np.inf, 1e7  # 1e7 / 127 has no finite float16
    k, v = law.kept(x, x, "q8_0")
    lost = np.zeros((2, 3), bool)
    lost[1, 2] = lost[0, 1] = True
    assert np.isnan(k[lost]).all() and not v[lost].any()
    for row, kept in zip(x[~lost], v[~lost], strict=True):
        for block in (slice(0, 32), slice(32, 48)):
            largest = np.abs(row[block]).max()
            codes = np.rint(row[block] * (np.float32(127) / largest))
            scale = np.float32(np.float16(largest / np.float32(127)))
            assert (kept[block] == law.bfloat16(codes * scale)).all()
    assert k[~lost].tobytes() == v[~lost].tobytes()


def random_quantised(rng: np.random.Generator, n: int, k: int, group: int, minima: bool) -> Quantised:
    def scale() -> F32:
        return (rng.standard_normal((n, k // group)) / 64).astype(np.float32)

    return Quantised(rng.integers(-128, 128, (n, k)).astype(np.int8), scale(), scale() if minima else None, group)


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("minima", [False, True])
def test_a_quantised_product_is_a_chain_over_groups(group: int, minima: bool) -> None:
    rng = np.random.default_rng(2)
    w = random_quantised(rng, 3, 96, group, minima)
    x = rng.standard_normal((2, 96)).astype(np.float32)
    codes, scales = law.quantise_rows(x)
    fmaf = c_fma()
    for t in range(2):
        for n in range(3):
            main = low = 0.0
            for g in range(96 // group):
                a = codes[t, g * group : (g + 1) * group].astype(int)
                dot = int(a @ w.codes[n, g * group : (g + 1) * group].astype(int))
                s = scales[t, g * group // 32]
                main = fmaf(float(dot), float(w.scales[n, g] * s), main)  # type: ignore[operator]
                if w.minima is not None:
                    low = fmaf(float(s * np.float32(a.sum())), float(w.minima[n, g]), low)  # type: ignore[operator]
            expected = np.float32(main) + np.float32(low) if minima else np.float32(main)
            assert law.linear(w, x)[t, n] == expected


def test_a_product_is_near_the_true_one() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 256)).astype(np.float32)
    w = rng.standard_normal((8, 256)).astype(np.float32)
    true = x.astype(np.float64) @ w.T.astype(np.float64)
    # 16 fused adds in a lane and 4 merges: at most 20 roundings of 2^-24 on the sum of magnitudes
    bound = 20 * 2.0**-24 * (np.abs(x) @ np.abs(w).T)
    assert (np.abs(law.linear(w, x) - true) <= bound).all()


def test_rows_of_a_product_do_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(4)
    for w in (random_quantised(rng, 20, 64, 32, True), rng.standard_normal((20, 50)).astype(np.float32)):
        x = rng.standard_normal((9, w.codes.shape[1] if isinstance(w, Quantised) else 50)).astype(np.float32)
        together = law.linear(w, x)
        alone = np.concatenate([law.linear(w, x[i : i + 1]) for i in range(9)])
        assert together.tobytes() == alone.tobytes()


def test_of_equals_the_lower_position_wins() -> None:
    assert law.top_k(np.array([[0.1, 0.4, 0.4, 0.1]], np.float32), 3).tolist() == [[1, 2, 0]]


def test_softmax_gives_masked_positions_exactly_nothing() -> None:
    x = np.random.default_rng(5).standard_normal((2, 700)).astype(np.float32)
    x[:, 300:] = -np.inf
    p = law.softmax(x)
    assert not p[:, 300:].any()
    assert p[:, :300].tobytes() == law.softmax(x[:, :300]).tobytes()
    assert p.sum(dtype=np.float64) == pytest.approx(2, abs=1e-5)


def test_bfloat16_is_what_torch_rounds_to() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    x = bits.view(np.float32)
    theirs = torch.from_numpy(x.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    ours = law.bfloat16(x)
    normal = np.abs(x) >= np.float32(2.0**-126)
    assert np.array_equal(ours[normal], theirs[normal])
    assert np.isnan(ours[np.isnan(x)]).all()
    assert not ours[np.abs(x) < np.float32(2.0**-126)].any()


def test_pair_products_are_two_chains_in_32_columns() -> None:
    """By fractions, rounded by hand, on numbers whose products and sums need rounding."""
    rng = np.random.default_rng(6)
    a, b = (
        law.bfloat16(rng.standard_normal((2, 70)).astype(np.float32) * 2.0 ** rng.integers(-9, 9, (2, 70)))
        for _ in "ab"
    )
    found = law.pair_products(a.astype(np.float32), b.astype(np.float32))

    for m in range(2):
        for n in range(2):
            total = Fraction(0)
            for start in range(0, 70, 32):
                chains = [Fraction(0), Fraction(0)]
                for k in range(start, min(start + 32, 70)):
                    chains[k % 2] = _to_float32(chains[k % 2] + Fraction(float(a[m, k])) * Fraction(float(b[n, k])))
                total = _to_float32(total + _to_float32(chains[0] + chains[1]))
            assert float(found[m, n]) == float(total)


def _to_float32(x: Fraction) -> Fraction:
    """The nearest float32, ties to even, of a number in its normal range."""
    if x == 0:
        return x
    exponent = math.floor(math.log2(abs(x))) - 23
    scaled = x / Fraction(2) ** exponent
    if not 2**23 <= abs(scaled) < 2**24:
        exponent += 1 if abs(scaled) >= 2**24 else -1
        scaled = x / Fraction(2) ** exponent
    return round(scaled) * Fraction(2) ** exponent
