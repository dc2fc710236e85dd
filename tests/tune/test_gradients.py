"""Derivatives by values inside are what small changes do, by the law; and they make attribution patching whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.lens.models import glass_of
from tests.parity.families import FAMILIES, random_weights
from tests.tune.models import tiny
from vitral.errors import RequestError
from vitral.lens import attribution_patching, patch
from vitral.lens import logit_difference as measured
from vitral.lens.patching import Site
from vitral.model.reference import Reference
from vitral.tune.gradients import gradients, input_times_gradient, integrated_gradients, logit_difference

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
METRIC, MEASURED = logit_difference(5, 9), measured(5, 9)
NAMES = ("hook_embed", "blocks.0.attn.hook_z", "blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized")


def by_law(family: str, name: str, change: Any) -> float:
    """The metric with a value changed, keys and values in float32: no other rounding hides a small step."""

    def on_tap(tap: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        return np.asarray(value + change) if tap == name else None

    spec = FAMILIES[family]
    return MEASURED(Reference(spec, random_weights(spec)).forward(IDS, on_tap=on_tap))


@pytest.mark.parametrize("family", ["llama-2", "llama-3.1", "mixtral"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_what_a_small_change_does(family: str, name: str) -> None:
    slope = gradients(tiny(family), METRIC)(IDS, [name])[name]
    noise = np.random.default_rng(2).standard_normal(slope.shape) * np.linalg.norm(slope) / np.sqrt(slope.size)
    step = (slope + noise) * (0.01 / np.linalg.norm(slope))
    step = step.astype(np.float32)
    up, down = by_law(family, name, step), by_law(family, name, -step)
    assert (up - down) / 2 == pytest.approx(float((slope * step).sum()), rel=0.02)


def test_attribution_patching_comes_close_to_patching() -> None:
    """Between two prompts that are almost one: the clean embedding is moved a little."""
    glass = glass_of("llama-2")
    other = [3, 1, 7, 1, 5, 9, 2, 6]
    name = "blocks.1.hook_resid_post"
    found = attribution_patching(glass, IDS, other, [name], gradients(tiny("llama-2"), METRIC), n_random=5)[name]
    exact = patch(glass, IDS, other, [Site(name)], MEASURED)[0]
    gap = exact.clean - exact.corrupt
    assert found.effect.sum() == pytest.approx(exact.effect * gap, rel=0.5)
    assert found.random is not None


def test_the_gradient_before_the_unembedding_is_its_direction() -> None:
    glass = glass_of("llama-2")
    slope = gradients(tiny("llama-2"), METRIC)(IDS, ["unembed.hook_in"])["unembed.hook_in"]
    u = glass.weights.W_U([5, 9])
    np.testing.assert_allclose(slope[-1], u[:, 0] - u[:, 1], rtol=1e-6)
    assert not slope[:-1].any()


def test_integrated_gradients_add_up_to_the_change_of_the_metric() -> None:
    model, glass = tiny("llama-2"), glass_of("llama-2")
    start = (0.5 * glass.run(IDS, ["hook_embed"])["hook_embed"].astype(np.float32)).astype(np.float32)
    start[:, :8] = 0
    found = integrated_gradients(model, IDS, METRIC, baseline=start, steps=128)
    change = MEASURED(glass.logits(IDS)) - MEASURED(glass.logits(IDS, {"hook_embed": lambda value: start}))
    assert found.shape == (len(IDS),)
    assert float(found.sum()) == pytest.approx(change, rel=1e-3, abs=1e-3)


def test_input_times_gradient_is_one_number_for_each_token() -> None:
    model, glass = tiny("llama-2"), glass_of("llama-2")
    found = input_times_gradient(model, IDS, METRIC)
    slope = gradients(model, METRIC)(IDS, ["hook_embed"])["hook_embed"]
    embed = glass.run(IDS, ["hook_embed"])["hook_embed"]
    np.testing.assert_allclose(found, (embed * slope).sum(axis=-1), rtol=1e-4, atol=1e-6)


def test_what_has_no_derivative_is_refused() -> None:
    of = gradients(tiny("mixtral"), METRIC)
    with pytest.raises(RequestError, match="no derivative"):
        of(IDS, ["*.hook_expert_indices"])
    with pytest.raises(RequestError, match="no tap"):
        of(IDS, ["hook_embedding"])
    with pytest.raises(RequestError, match="the baseline has shape"):
        integrated_gradients(tiny("llama-2"), IDS, METRIC, baseline=np.zeros((1, 64), np.float32))
