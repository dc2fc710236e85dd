"""A mixture whose first layer is dense, under every lens: what experts have is shown of the layers that have them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.lens.models import as_weights, glass_of
from vitral.cli.inspect_screen import _routes
from vitral.engine.interventions import Intervention
from vitral.engine.request import SamplingParams
from vitral.errors import RequestError
from vitral.formats.checkpoint import open_checkpoint
from vitral.language_model import LanguageModel
from vitral.lens import (
    Glass,
    attribute,
    drift,
    edits_without,
    expert_outputs,
    head_scores,
    logit_lens,
    neuron_attribution,
    token_losses,
    without,
)
from vitral.lens.analysis import Analysis, LawView, analyse
from vitral.lens.inspect import inspect
from vitral.lens.light import LightSet
from vitral.lens.record import record
from vitral.loading import of_checkpoint
from vitral.model.spec import MoeSpec

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]
FAMILY = "mixtral-dense-first"


@pytest.fixture(scope="module")
def glass() -> Glass:
    return glass_of(FAMILY)


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Iterator[LanguageModel]:
    """The stories with three experts, copies with noise, in all layers but the first."""
    found = open_checkpoint(data_dir / "model-stories260k" / "stories260K.bin")
    spec = replace(found.spec, moe=MoeSpec(3, 2, n_leading_dense=1))
    rng = np.random.default_rng(0)
    values = {}
    for name in found.weights.tensors:
        value = found.weights.tensors[name].dequantize()
        layer, _, part = name.removeprefix("blocks.").partition(".mlp.")
        if not part or layer == "0":
            values[name] = value
            continue
        values[f"blocks.{layer}.mlp.router.weight"] = rng.standard_normal((3, spec.dim)).astype(np.float32)
        for e in range(3):
            noise = rng.standard_normal(value.shape).astype(np.float32) * value.std() / 10
            values[f"blocks.{layer}.mlp.experts.{e}.{part}"] = value + noise
    with of_checkpoint(replace(found, spec=spec, weights=as_weights(spec, values)), threads=1) as model:
        yield model


def test_neurons_of_a_network_and_of_experts_add_up_to_what_their_blocks_write(model: LanguageModel) -> None:
    cache = record(model, [1, *IDS])
    neurons, labels = cache.stack_neuron_results(3, return_labels=True)
    F = model.spec.hidden_dim
    assert len(labels) == len(neurons) == F * (1 + 3 + 3)
    assert labels[F - 1 : F + 1] == [f"L0N{F - 1}", "L1E0N0"]
    for layer, of in enumerate((neurons[:F], neurons[F : 4 * F], neurons[4 * F :])):
        np.testing.assert_allclose(of.sum(axis=0), cache["mlp_out", layer], atol=1e-5)
    assert (
        cache.stack_neuron_results(2, slice(3)).tobytes()
        == neurons[[*range(3), *(F * e + n for e in (1, 2, 3) for n in range(3))]].tobytes()
    )


def test_parts_add_up_and_a_dense_layer_has_no_experts(glass: Glass) -> None:
    values = glass.run(IDS)
    found = attribute(values, glass.weights, 11)
    assert found.experts is not None and (found.experts[0] == 0).all()
    np.testing.assert_allclose(found.experts[1:].sum(axis=1), found.mlps[1:], atol=2e-6)
    assert abs(found.rest) < 1e-5
    assert neuron_attribution(values, glass.weights, 0, 11).sum() == pytest.approx(found.mlps[0], abs=2e-6)
    with pytest.raises(RequestError, match="layer 0 has no experts"):
        expert_outputs(values, glass.weights, 0)
    with pytest.raises(RequestError, match="layer 0 has no experts"):
        neuron_attribution(values, glass.weights, 0, 11, expert=1)


def test_what_is_silenced_is_an_expert_of_a_layer_that_has_some(glass: Glass) -> None:
    edits = edits_without(glass.spec, experts=[(1, 0), (2, 3)])
    silent = Glass(glass.spec, without(glass.weights.tensors, experts=[(1, 0), (2, 3)]))
    a, b = token_losses(glass.logits(IDS, edits), IDS), token_losses(silent.logits(IDS), IDS)
    np.testing.assert_allclose(a, b, atol=1e-5)
    for wrong in (
        lambda: edits_without(glass.spec, experts=[(0, 0)]),
        lambda: without(silent.weights.tensors, experts=[(0, 0)]),
    ):
        with pytest.raises(RequestError, match="layer 0 expert 0 does not exist; there are none"):
            wrong()


def test_scores_lens_and_drift_run(glass: Glass) -> None:
    values = glass.run(IDS)
    assert head_scores(values, IDS).induction.shape == (3, 4)
    assert (logit_lens(values, glass.weights, top=1).ids[-1, :, 0] == values["unembed.hook_out"].argmax(-1)).all()
    found = drift(glass, glass_of(FAMILY, seed=1), IDS)
    assert found.routes == 2 * 2 * len(IDS)
    assert found.flips_by_layer[0] == 0 and found.flips > 0


def test_evidence_has_routes_of_the_layers_with_experts(glass: Glass) -> None:
    law = LawView(glass.spec, glass.weights.tensors.law(), 64)
    found = analyse(law, IDS[:5], IDS[5:], Analysis(lens=1, routes=True))
    assert [one["layer"] for one in found["routes"]] == [1, 2]
    assert [one["layer"] for one in found["lens"]] == [0, 1, 2]


def test_an_inspection_and_the_light_set_say_which_layers_have_experts(model: LanguageModel) -> None:
    n_layers = model.spec.n_layers
    ids = model.tokenizer.encode("Once upon a time there was")
    edits = [Intervention("knock_out", layer=2, experts=(0,))]
    document = inspect(model, ids, interventions=edits)
    for run in (document["run"], document["before"]):
        assert [len(layer) for layer in run["experts"]["indices"]] == [0, *[len(ids)] * (n_layers - 1)]
        assert [len(layer) for layer in run["experts"]["weights"]] == [0, *[len(ids)] * (n_layers - 1)]
    assert not (np.array(document["run"]["experts"]["indices"][2]) == 0).any()
    console = Console(file=io.StringIO(), width=100)
    console.print(_routes(document))
    assert "no experts" in console.file.getvalue()  # type: ignore[attr-defined]
    light = LightSet(model, 0)
    params = SamplingParams(max_tokens=3)
    with model.engine.answer(ids, params, watch=light.watches, on_value=light.on_value) as answer:
        tokens = [event.token for event in answer if hasattr(event, "token")]
    found = light.finish([*ids, *tokens])
    assert found is not None and found.margins is not None and found.experts is not None
    assert found.margins.shape == (n_layers - 1, len(ids) + 2) and found.experts.shape[2] == 2
    assert found.lens.shape[0] == n_layers
