"""Attributions add up: heads to attention, experts and neurons to the block, all parts to the logit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import Glass, attribute, expert_outputs, head_results, neuron_attribution, open_glass

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]
FAMILIES = ["llama-2", "llama-3.2-tied", "mistral-window", "mixtral"]  # test_dense_first.py has one more


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("contrast", [None, 7])
def test_parts_add_up_to_the_logit(family: str, contrast: int | None) -> None:
    glass = glass_of(family)
    values = glass.run(IDS)
    found = attribute(values, glass.weights, 11, contrast)
    logits = values["unembed.hook_out"][-1].astype(float)
    assert found.logit == logits[11] - (0 if contrast is None else logits[contrast])
    assert found.rounding == 0
    assert abs(found.rest) < 2e-6 * np.abs(logits).max()
    if found.experts is not None:
        np.testing.assert_allclose(found.experts.sum(axis=1), found.mlps, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_add_up_to_attention_and_experts_to_the_block(family: str) -> None:
    glass = glass_of(family)
    values = glass.run(IDS)
    for i in range(glass.spec.n_layers):
        heads = head_results(values, glass.weights, i)
        np.testing.assert_allclose(heads.sum(axis=1), values[f"blocks.{i}.hook_attn_out"], atol=2e-6)
        if glass.spec.moe:
            experts = expert_outputs(values, glass.weights, i)
            np.testing.assert_allclose(experts.sum(axis=1), values[f"blocks.{i}.hook_mlp_out"], atol=2e-6)


def test_neurons_add_up_to_their_layer() -> None:
    glass = glass_of("llama-2")
    values = glass.run(IDS)
    for i in range(glass.spec.n_layers):
        neurons = neuron_attribution(values, glass.weights, i, 11, 7)
        assert neurons.sum() == pytest.approx(attribute(values, glass.weights, 11, 7).mlps[i], abs=2e-6)


def test_neurons_of_an_expert_add_up_to_what_it_adds() -> None:
    glass = glass_of("mixtral")
    values = glass.run(IDS)
    for position in (-1, 2, 0):
        experts = attribute(values, glass.weights, 11, 7, position).experts
        assert experts is not None
        for i in range(glass.spec.n_layers):
            for e in range(8):
                neurons = neuron_attribution(values, glass.weights, i, 11, 7, position, expert=e)
                assert neurons.shape == (glass.spec.hidden_dim,)
                assert neurons.sum() == pytest.approx(experts[i, e], abs=2e-6)
                assert (neurons == 0).all() == (experts[i, e] == 0)
    for wrong in (None, 8):
        with pytest.raises(RequestError, match=f"expert is {wrong}; layer 1 has the experts 0 to 7"):
            neuron_attribution(values, glass.weights, 1, 11, expert=wrong)


def test_a_part_is_what_is_missing_when_it_is_taken_from_the_final_residual() -> None:
    """By hand, from the definition: the frozen scale makes the unembedding linear."""
    glass = glass_of("llama-2")
    values = glass.run(IDS)
    part = values["blocks.1.hook_mlp_out"][-1].astype(float)
    x = values["blocks.1.hook_resid_post"][-1].astype(float)
    scale = np.sqrt((x**2).mean() + glass.spec.norm_eps)
    u = glass.weights.tensors["unembed.weight"].dequantize()[11].astype(float)
    gain = glass.weights.gain("ln_final").astype(float)
    expected = u @ (x / scale * gain) - u @ ((x - part) / scale * gain)
    assert attribute(values, glass.weights, 11).mlps[1] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Glass:
    return open_glass("smollm2:135m")


def test_on_a_quantised_model_heads_add_up_and_rounding_is_a_part_of_its_own(real: Glass) -> None:
    values = real.run(real.tokenizer.encode("Paris is"))
    for i in (0, 15, 29):
        heads = head_results(values, real.weights, i)
        out = values[f"blocks.{i}.hook_attn_out"]
        assert np.abs(heads.sum(axis=1) - out).max() < 1e-5 * np.abs(out).max()
    neurons = neuron_attribution(values, real.weights, 29, 260)
    found = attribute(values, real.weights, 260)
    assert neurons.sum() == pytest.approx(found.mlps[29], rel=1e-4, abs=1e-5)
    parts = found.embed + found.heads.sum() + found.mlps.sum() + found.rounding
    assert parts + found.rest == pytest.approx(found.logit, abs=1e-9)
    assert abs(found.rest) < 2e-3  # all of rounding comes from the last product: no part was forgotten
    x = values["unembed.hook_in"][-1:].astype(np.float32)
    u = real.weights.W_U([260])[:, 0].astype(float)
    last = (real.weights.as_multiplied(real.weights.unembed_name, x) - x)[0] @ u
    assert found.rounding == pytest.approx(last, abs=1e-6)


def test_what_was_not_recorded_is_named() -> None:
    glass = glass_of("llama-2")
    with pytest.raises(RequestError, match="hook_z was not recorded"):
        head_results({}, glass.weights, 0)
    with pytest.raises(RequestError, match="no experts"):
        expert_outputs({}, glass.weights, 0)
