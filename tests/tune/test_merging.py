"""Merging is the arithmetic of its papers; adapters add exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.formats.layouts import write_gguf
from tests.parity.families import FAMILIES, random_weights
from tests.tune.models import tiny
from tests.tune.test_adapter_files import adapted, logits
from vitral.errors import AdapterMismatch, TuneError
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.tune.adapter_files import load_adapter, save_peft
from vitral.tune.merging import MergePlan, add_adapters, merge_models, merge_tensors

SPEC = FAMILIES["llama-2"]
A, B, ZERO = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 5.0, 0.0]), torch.zeros(3)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("merge")
    return [open_checkpoint(write_gguf(folder / f"{i}.gguf", SPEC, random_weights(SPEC, i))) for i in range(3)]


def values(checkpoint: Checkpoint, name: str = "blocks.1.mlp.up.weight") -> np.ndarray:
    return checkpoint.weights[name].dequantize()


def test_linear_is_the_weighted_mean(three: list[Checkpoint]) -> None:
    found = values(merge_models(three, MergePlan("linear", (1.0, 2.0, 1.0))))
    expected = (values(three[0]) + 2 * values(three[1]) + values(three[2])) / 4
    assert np.allclose(found, expected, atol=1e-6)


def test_slerp_keeps_the_length_between_directions_of_one_length() -> None:
    half = merge_tensors("t", [A, B], MergePlan("slerp", (0.5, 0.5)))
    assert float(half.norm()) == pytest.approx(5)
    assert torch.allclose(merge_tensors("t", [A, B], MergePlan("slerp", (1.0, 0.0))), A, atol=1e-6)
    assert torch.allclose(merge_tensors("t", [A, B], MergePlan("slerp", (0.0, 1.0))), B, atol=1e-6)
    assert torch.allclose(merge_tensors("t", [A, 2 * A], MergePlan("slerp", (0.5, 0.5))), 1.5 * A)


def test_ties_trims_elects_and_averages_those_who_agree() -> None:
    """Kept of the first: 4, -3; of the second: 5, 2. Signs elected: plus for place 0, plus for place 2, minus for 1."""
    one, two = torch.tensor([4.0, -3.0, 0.5, 0.0]), torch.tensor([2.0, 0.1, 5.0, 0.0])
    found = merge_tensors("t", [one, two], MergePlan("ties", (1.0, 1.0), density=0.5), torch.zeros(4))
    assert found.tolist() == pytest.approx([3.0, -3.0, 5.0, 0.0])
    against = merge_tensors("t", [one, -two], MergePlan("ties", (1.0, 1.0), density=0.5), torch.zeros(4))
    assert against.tolist() == pytest.approx([4.0, -3.0, -5.0, 0.0])


def test_dare_drops_and_rescales_so_that_the_mean_stays() -> None:
    change = torch.ones(20_000)
    found = merge_tensors("t", [change], MergePlan("dare", (1.0,), density=0.25, seed=3), torch.zeros(20_000))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1, abs=0.05)  # five standard deviations of the mean of 20,000 draws
    assert torch.equal(
        found, merge_tensors("t", [change], MergePlan("dare", (1.0,), density=0.25, seed=3), torch.zeros(20_000))
    )


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_at_full_density_one_change_is_kept_whole(method: str, three: list[Checkpoint]) -> None:
    plan = MergePlan(method, (1.0, 0.0), density=1.0)  # type: ignore[arg-type]
    found = values(merge_models([three[1], three[2]], plan, three[0]))
    assert np.allclose(found, values(three[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "n", "base", "message"),
    [
        (MergePlan("linear"), 1, False, "two or more"),
        (MergePlan("slerp"), 3, False, "exactly two"),
        (MergePlan("ties"), 2, False, "base belongs"),
        (MergePlan("linear"), 2, True, "base belongs"),
        (MergePlan("linear", (1.0,)), 2, False, "one each"),
        (MergePlan("linear", (1.0, -1.0)), 2, False, "above 0"),
    ],
)
def test_merges_that_mean_nothing_are_refused(
    plan: MergePlan, n: int, base: bool, message: str, three: list[Checkpoint]
) -> None:
    with pytest.raises(TuneError, match=message):
        merge_models(three[:n], plan, three[0] if base else None)


def test_other_architectures_and_methods_are_refused(three: list[Checkpoint]) -> None:
    other = replace(three[1], spec=replace(SPEC, norm_eps=1e-6))
    with pytest.raises(TuneError, match="another architecture"):
        merge_models([three[0], other], MergePlan())
    with pytest.raises(TuneError, match="magic"):
        MergePlan("magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_adapters_add_exactly_and_one_minus_itself_is_the_base(kind: str, tmp_path: Path) -> None:
    one, plan = adapted("mixtral", kind)
    save_peft(one, plan, tmp_path / "one", {})
    both, rank8 = add_adapters(one.spec, [(tmp_path / "one", 1.5), (tmp_path / "one", -0.5)])
    save_peft(both, rank8, tmp_path / "both", {})
    model = tiny("mixtral")
    assert load_adapter(model, tmp_path / "both").rank == 8
    assert torch.allclose(logits(model), logits(one), atol=1e-3)
    nothing, plan8 = add_adapters(one.spec, [(tmp_path / "one", 1.0), (tmp_path / "one", -1.0)])
    save_peft(nothing, plan8, tmp_path / "nothing", {})
    model = tiny("mixtral")
    load_adapter(model, tmp_path / "nothing")
    assert torch.allclose(logits(model), logits(tiny("mixtral")), atol=1e-3)


def test_magnitudes_do_not_add(tmp_path: Path) -> None:
    model, plan = adapted("llama-2", "dora")
    save_peft(model, plan, tmp_path / "a", {})
    with pytest.raises(AdapterMismatch, match="DoRA"):
        add_adapters(model.spec, [(tmp_path / "a", 1.0)])
