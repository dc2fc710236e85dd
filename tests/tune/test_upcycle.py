"""A mixture of equal copies is the dense model; routers from data find their domains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.formats.layouts import write_gguf
from tests.parity.families import FAMILIES, random_weights
from vitral.engine.request import SamplingParams
from vitral.errors import SpecError, TuneError
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.model.law import F32
from vitral.model.reference import Reference
from vitral.model.spec import MoeSpec
from vitral.tune.batch import Row
from vitral.tune.forward import Packed, load_model
from vitral.tune.served import engine_of
from vitral.tune.upcycle import averaged, routers_from_data, routing_information, upcycle

SPEC = FAMILIES["llama-2-grouped"]
IDS = list(range(3, 40))
PACKED = Packed.of([IDS])


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Three models that share all but their feed-forward parts, as branches of one base do."""
    folder, first = tmp_path_factory.mktemp("branches"), random_weights(SPEC)
    found = []
    for i in range(3):
        own = {name: random_weights(SPEC, i)[name] if ".mlp." in name else value for name, value in first.items()}
        found.append(open_checkpoint(write_gguf(folder / f"{i}.gguf", SPEC, own)))
    return found


def domains() -> dict[str, list[Row]]:
    """Each domain has tokens of its own."""
    rng = np.random.default_rng(3)
    return {
        name: [Row(tuple(rng.integers(low, low + 50, 24).tolist()), (False,) + (True,) * 23) for _ in range(8)]
        for name, low in (("low", 3), ("middle", 55), ("high", 107))
    }


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_equal_copies_are_the_dense_model_whatever_the_router(
    per_token: int, branches: list[Checkpoint], tmp_path: Path
) -> None:
    convert(upcycle([branches[0]], per_token, copies=4, seed=5), tmp_path / "m.gguf")
    mixture = load_model(tmp_path / "m.gguf")
    assert mixture.spec == replace(SPEC, moe=MoeSpec(4, per_token))
    with torch.no_grad():
        assert float((mixture.logits(PACKED) - load_model(branches[0]).logits(PACKED)).abs().max()) <= 2e-4


def test_each_expert_is_its_branch_and_all_else_their_mean(branches: list[Checkpoint]) -> None:
    found = upcycle(branches, 2)
    for e, branch in enumerate(branches):
        for part in ("gate", "up", "down"):
            name = f"blocks.1.mlp.experts.{e}.{part}.weight"
            assert np.array_equal(
                found.weights[name].dequantize(), branch.weights[f"blocks.1.mlp.{part}.weight"].dequantize()
            )
    mean = np.mean([b.weights["blocks.0.attn.q.weight"].dequantize() for b in branches], axis=0)
    assert np.allclose(found.weights["blocks.0.attn.q.weight"].dequantize(), mean, atol=1e-6)


@pytest.mark.parametrize("layout", ["gguf", "safetensors"])
def test_leading_layers_stay_dense_and_travel_in_a_layout_of_ours(
    layout: Literal["gguf", "safetensors"], branches: list[Checkpoint], tmp_path: Path
) -> None:
    made = upcycle([branches[0]], 2, copies=2, dense=1)
    path = tmp_path / ("m.gguf" if layout == "gguf" else "m")
    convert(made, path, layout)
    again = open_checkpoint(path)
    assert again.spec == replace(SPEC, moe=MoeSpec(2, 2, n_leading_dense=1))
    assert "blocks.0.mlp.up.weight" in again.weights and "blocks.1.mlp.experts.1.up.weight" in again.weights
    model = load_model(path)
    with torch.no_grad():
        assert float((model.logits(PACKED) - load_model(branches[0]).logits(PACKED)).abs().max()) <= 2e-4
    assert [x["layer"] for x in routing_information(model, domains())] == [1]
    rows: list[F32] = []
    engine = engine_of(again, context_length=64)
    engine.add(IDS, SamplingParams(max_tokens=1), on_logits=lambda _, row: rows.append(row.copy()))
    while not engine.idle:
        engine.step()
    expected = Reference(again.spec, open_checkpoint(path).weights.law(), 64).forward(IDS)[-1]
    assert rows[-1].tobytes() == expected.tobytes()


def test_a_mixture_has_experts_in_some_layer(branches: list[Checkpoint]) -> None:
    with pytest.raises(SpecError, match="2 of 2 layers are dense"):
        upcycle(branches, 2, dense=2)


def test_noise_parts_the_copies_by_its_size(branches: list[Checkpoint]) -> None:
    found = upcycle([branches[0]], 2, copies=2, noise=0.1)
    one, two = (found.weights[f"blocks.0.mlp.experts.{e}.up.weight"].dequantize() for e in (0, 1))
    assert np.std(one - two) == pytest.approx(
        0.1 * np.sqrt(2) * np.std(branches[0].weights["blocks.0.mlp.up.weight"].dequantize()), rel=0.05
    )


def test_routers_from_data_tell_the_domains_better_than_random_ones(branches: list[Checkpoint], tmp_path: Path) -> None:
    """On rows that the routers were not made from, against the same tokens with their domains shuffled."""
    made = {name: rows[::2] for name, rows in domains().items()}
    held = {name: rows[1::2] for name, rows in domains().items()}
    routers = routers_from_data(averaged(branches), made)
    told = []
    for router in (routers, None):
        convert(upcycle(branches, 2, routers=router), tmp_path / f"{router is None}.gguf")
        told.append(routing_information(load_model(tmp_path / f"{router is None}.gguf"), held))
    assert all(layer["information"] > 10 * layer["shuffled"] for layer in told[0])
    assert told[0][0]["information"] > 1.5 * told[1][0]["information"]
    assert all(layer["dead"] == 0 for layer in told[0])


def test_router_logits_have_unit_variance(branches: list[Checkpoint]) -> None:
    model = averaged(branches)
    for router in routers_from_data(model, domains()).values():
        lengths = router.norm(dim=1)
        assert torch.allclose(lengths, lengths[:1].expand(3), rtol=1e-4)


def test_mixtures_that_cannot_be_are_refused(branches: list[Checkpoint]) -> None:
    with pytest.raises(TuneError, match="two experts"):
        upcycle([branches[0]], 1)
    with pytest.raises(TuneError, match="another architecture"):
        upcycle([branches[0], replace(branches[1], spec=replace(SPEC, norm_eps=1e-6))], 2)
    with pytest.raises(TuneError, match="two or more"):
        routers_from_data(averaged(branches), {"one": domains()["low"]})
