"""Rotary tables are accurate and the scalings do what their papers say."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from tests.parity.families import FAMILIES
from vitral.model.presets import preset
from vitral.model.rope import frequencies, rotate, tables
from vitral.model.spec import RopeSpec


def test_tables_are_within_one_rounding_of_the_true_cosine_and_sine() -> None:
    spec = preset("llama-3.1-8b")
    start = 131_000
    cos, sin = tables(spec, start + 72, spec.max_context)
    turns = frequencies(spec.rope, spec.head_dim, spec.max_context)
    angles = np.arange(start + 72)[:, None] * turns
    for ours, true in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert np.abs(ours - true).max() <= 2.0**-25 * 1.000001


def test_half_pi_is_the_sum_of_its_parts() -> None:
    from vitral.model.rope import _HALF_PI

    with localcontext() as context:
        context.prec = 60
        half_pi = Decimal("1.57079632679489661923132169163975144209858469968755291")
        assert abs(sum(map(Decimal, _HALF_PI)) - half_pi) < Decimal("1e-36")
    for part in _HALF_PI[:2]:
        mantissa, _ = math.frexp(part)
        assert (mantissa * 2**33).is_integer()


def test_turning_keeps_lengths_and_the_product_depends_on_the_distance_alone() -> None:
    cos, sin = tables(preset("llama-2-7b"), 50, 50)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 128)).astype(np.float32)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        return rotate(x, cos[position : position + 1], sin[position : position + 1]).ravel().astype(np.float64)

    assert np.linalg.norm(turned(q, 40)) == pytest.approx(np.linalg.norm(q), rel=1e-6)
    assert turned(q, 30) @ turned(k, 10) == pytest.approx(turned(q, 45) @ turned(k, 25), rel=1e-4)


def test_linear_stretches_positions() -> None:
    plain = tables(FAMILIES["llama-2"], 5, 64)[0]
    assert np.allclose(tables(FAMILIES["llama-linear"], 17, 64)[0][::4], plain, atol=1e-7)


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    spec = preset("llama-3.1-8b")
    plain = frequencies(RopeSpec(spec.rope.theta, "none"), 128, 0)
    scaled = frequencies(spec.rope, 128, 0)
    assert (scaled[:20] == plain[:20]).all()
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    assert (np.diff(plain / scaled) >= -1e-12).all()


def test_dynamic_is_plain_up_to_the_original_context() -> None:
    rope = FAMILIES["llama-dynamic"].rope
    plain = frequencies(RopeSpec(rope.theta, "none"), 16, 0)
    assert (frequencies(rope, 16, 16) == plain).all()
    assert (frequencies(rope, 16, 32)[1:] < plain[1:]).all()
