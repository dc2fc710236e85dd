"""The torch forward pass is the reference's, value by value, and its gradients are those of the values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.formats.layouts import write_gguf
from tests.parity.families import FAMILIES, random_weights
from tests.tune.models import tiny
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.model.names import tensor_shapes
from vitral.model.reference import Reference
from vitral.model.taps import taps
from vitral.tune.forward import Packed, Taps, Transformer, load_model

IDS = np.random.default_rng(11).integers(0, 160, 29).tolist()
# Two float32 passes over the same numbers in another order: errors of a sum of n terms stay below
# n u |terms| (Higham 2002, 4.2) with u = 6e-8; the longest sums here have 96 terms, and two layers
# pass them on. 1e-4 of the largest value leaves a factor of ten.
CLOSE = 1e-4


def seen_by(model: Transformer, packed: Packed) -> dict[str, np.ndarray]:
    found = {}

    def see(name: str, value: torch.Tensor) -> None:
        found[name] = value.detach().numpy()

    model.logits(packed, Taps(see))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_is_the_references(family: str) -> None:
    spec = FAMILIES[family]
    expected: dict[str, np.ndarray] = {}

    def see(name: str, value: np.ndarray) -> None:
        expected[name] = value.copy()

    Reference(spec, random_weights(spec), 64).forward(IDS, on_tap=see)  # type: ignore[arg-type]
    found = seen_by(tiny(family), Packed.of([IDS]))
    assert list(found) == list(expected)
    for name in (tap.name for tap in taps(spec) if tap.name in expected):
        ours, law = found[name], expected[name]
        assert ours.shape == law.shape, name
        finite = np.isfinite(law)
        assert np.array_equal(finite, np.isfinite(ours)), name
        assert np.abs(ours[finite] - law[finite]).max() <= CLOSE * np.abs(law[finite]).max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_attention_is_the_one_in_the_open(family: str) -> None:
    model, packed = tiny(family), Packed.of([IDS, IDS[3:20], IDS[:1]])
    logits = model.logits(packed)
    open_ = model.logits(packed, Taps(lambda name, value: None))
    assert torch.allclose(logits, open_, rtol=0, atol=CLOSE * float(open_.abs().max()))


@pytest.mark.parametrize("family", ["llama-3.1", "mistral-window", "mixtral-window"])
@pytest.mark.parametrize("watched", [False, True])
def test_no_sequence_sees_another(family: str, watched: bool) -> None:
    """Random boundaries; each sequence's logits are those it has alone, and no other one's change moves them."""
    model, rng = tiny(family, torch.float64), np.random.default_rng(5)
    tap = Taps(lambda name, value: None) if watched else Taps()
    for _ in range(4):
        sequences = [rng.integers(0, 160, n).tolist() for n in rng.integers(1, 30, 4)]
        together = model.logits(Packed.of(sequences), tap).split([len(s) for s in sequences])
        for ids, logits in zip(sequences, together, strict=True):
            assert torch.allclose(logits, model.logits(Packed.of([ids])), rtol=0, atol=1e-10)
    same_length = [rng.integers(0, 160, 9).tolist() for _ in range(3)]
    together = model.logits(Packed.of(same_length), tap)
    assert torch.allclose(together[9:18], model.logits(Packed.of(same_length[1:2])), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["llama-3.2-tied", "mistral-window", "mixtral", "mixtral-dense-first"])
def test_gradients_are_finite_differences(family: str) -> None:
    model = tiny(family, torch.float64).requires_grad_(True)
    packed, rng = Packed.of([IDS[:9], IDS[9:14]]), np.random.default_rng(2)

    def loss() -> torch.Tensor:
        return model.logits(packed).log_softmax(-1)[torch.arange(13), packed.ids[1:]].mean()

    loss().backward()
    step = 1e-5
    for name, parameter in model.named_parameters():
        direction = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
        assert parameter.grad is not None or ".experts." in name, name  # an expert that no token chose
        slope = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += step * direction
            high = float(loss())
            parameter -= 2 * step * direction
            low = float(loss())
            parameter += step * direction
        measured = (high - low) / (2 * step)
        assert abs(slope - measured) <= 1e-6 * max(1.0, abs(slope)), name


@pytest.mark.parametrize("family", ["llama-3.1", "mixtral"])
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    grads = []
    for again in (False, True):
        model = tiny(family).requires_grad_(True)
        model.recompute_activations = again
        model.logits(Packed.of([IDS, IDS[:5]])).logsumexp(-1).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_a_replaced_value_changes_the_logits() -> None:
    model, packed = tiny(), Packed.of([IDS])
    plain = model.logits(packed)
    quiet = Taps(lambda name, value: torch.zeros_like(value), lambda name: name == "blocks.1.hook_mlp_out")
    assert not torch.allclose(plain, model.logits(packed, quiet))


@pytest.mark.parametrize("type_", ["F16", "Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_loaded_weights_are_the_values_that_are_served(type_: str, tmp_path: Path) -> None:
    spec = FAMILIES["mixtral"]
    convert(write_gguf(tmp_path / "a.gguf", spec, random_weights(spec)), tmp_path / "b.gguf", type=type_)
    served = open_checkpoint(tmp_path / "b.gguf")
    state = load_model(tmp_path / "b.gguf").state_dict()
    assert set(state) == set(tensor_shapes(spec))
    for name, value in state.items():
        assert np.array_equal(value.numpy(), served.weights[name].dequantize()), name


def test_a_loaded_model_trains_nothing_until_told(tmp_path: Path) -> None:
    spec = FAMILIES["llama-2"]
    model = load_model(write_gguf(tmp_path / "a.gguf", spec, random_weights(spec)))
    assert not any(p.requires_grad for p in model.parameters())


def test_lengths_that_do_not_fit_the_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        Packed(torch.arange(4), (3, 2))
