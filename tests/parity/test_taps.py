"""Every tap of the engine is that of transformers, an independent program, in float32."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.families import FAMILIES, random_weights
from vitral.formats.quants import type_info
from vitral.formats.weights import Tensor, Weights
from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.model.taps import taps
from vitral.native import available

pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
pytest.importorskip("transformers")

TOLERANCE = 1e-5
IDS = np.random.default_rng(1).integers(0, 160, 24).tolist()


def float_weights(spec: ModelSpec, values: dict[str, F32]) -> Weights:
    def tensor(name: str, value: F32) -> Tensor:
        return Tensor(name, type_info("F32"), value.shape, lambda: value.reshape(-1, value.shape[-1]).view(np.uint8))

    return Weights(spec, {name: tensor(name, value) for name, value in values.items()})


@pytest.mark.parametrize(
    "family", ["llama-2", "llama-3.1", "llama-3.2-tied", "mistral-window", "mixtral", "mixtral-window"]
)
def test_every_tap_of_the_engine_is_that_of_transformers(family: str) -> None:
    from tests.parity.tap_errors import our_taps, tap_errors
    from tests.parity.test_transformers import their_model
    from tests.parity.their_taps import their_taps

    spec = FAMILIES[family]
    values = random_weights(spec)
    ours = our_taps(spec, float_weights(spec, values), IDS, available()[-1])
    errors = tap_errors(ours, their_taps(their_model(spec, values), spec, IDS))
    experts_unused = {tap.name for tap in taps(spec)} - set(ours)
    assert all(".experts." in name for name in experts_unused)
    worst = max(errors, key=lambda e: e.error)
    assert worst.error < TOLERANCE, worst


def test_a_value_that_is_off_is_named_with_its_token() -> None:
    from tests.parity.tap_errors import tap_errors

    right = {"hook_embed": np.ones((4, 3), np.float32)}
    wrong = {"hook_embed": right["hook_embed"].copy()}
    wrong["hook_embed"][2, 1] = 1.5
    (error,) = tap_errors(wrong, right)
    assert (error.error, error.worst_token) == (0.5, 2)
    assert tap_errors(right, {})[0].error == np.inf
