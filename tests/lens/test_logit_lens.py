"""The lens at the last layer is the model; in between it is what NumPy gives by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.lens.models import glass_of
from vitral.errors import FormatError, TensorMismatch, UnsafeFile
from vitral.lens import commitment_layer, lens_logits, logit_lens, read_translator, target_lens

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("family", ["llama-2", "llama-3.2-tied", "mixtral"])
def test_the_lens_at_the_last_layer_is_the_model_to_the_bit(family: str) -> None:
    glass = glass_of(family)
    values = glass.run(IDS)
    last = values[f"blocks.{glass.spec.n_layers - 1}.hook_resid_post"]
    assert np.array_equal(lens_logits(glass.weights, last), values["unembed.hook_out"])
    found = logit_lens(values, glass.weights)
    assert np.array_equal(found.ids[-1, :, 0], values["unembed.hook_out"].argmax(-1))
    assert (found.ranks[-1] == 1).all() and (found.kl[-1] == 0).all() and (found.kl >= -1e-12).all()


def test_full_and_target_lens_agree_with_numpy_by_hand() -> None:
    glass = glass_of("llama-2")
    values = glass.run(IDS)
    h = values["blocks.0.hook_resid_post"].astype(float)
    x = h / np.sqrt((h**2).mean(-1, keepdims=True) + glass.spec.norm_eps) * glass.weights.gain("ln_final")
    logits = x @ glass.weights.tensors["unembed.weight"].dequantize().astype(float).T
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = logit_lens(values, glass.weights, top=3)
    np.testing.assert_allclose(found.probabilities[1], -np.sort(-p, axis=-1)[:, :3], rtol=1e-4)
    np.testing.assert_allclose(found.entropy[1], -(p * np.log(p)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(target_lens(values, glass.weights, [5, 9])[1], logits[:, [5, 9]], atol=1e-4)


def test_commitment_is_the_first_layer_that_never_changes_again() -> None:
    ranks = np.array([[1, 5, 2], [3, 1, 2], [1, 1, 2]])
    assert commitment_layer(ranks).tolist() == [2, 1, 3]


def test_a_tuned_lens_of_zeros_changes_nothing_and_a_jacobian_maps(tmp_path: Path) -> None:
    glass = glass_of("llama-2")
    values = glass.run(IDS)
    dim = glass.spec.dim
    zeros = {"1.weight": np.zeros((dim, dim), np.float32), "1.bias": np.zeros(dim, np.float32)}
    save_file(zeros, tmp_path / "tuned.safetensors")
    tuned = read_translator(tmp_path / "tuned.safetensors", glass.weights, "tuned")
    assert np.array_equal(logit_lens(values, glass.weights).kl, logit_lens(values, glass.weights, translator=tuned).kl)
    matrix = np.random.default_rng(0).standard_normal((dim, dim)).astype(np.float32)
    save_file({"1.weight": matrix}, tmp_path / "j.safetensors")
    jacobian = read_translator(tmp_path / "j.safetensors", glass.weights, "jacobian")
    h = values["blocks.0.hook_resid_post"]
    seen = target_lens(values, glass.weights, [5], jacobian)[1]
    np.testing.assert_allclose(seen, lens_logits(glass.weights, h @ matrix.T)[:, [5]], atol=1e-4)


def test_a_tuned_lens_is_read_as_tuned_lens_saves_it(tmp_path: Path) -> None:
    """The state dict of its list of `nn.Linear`, one for each layer, in `params.pt`."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
    glass = glass_of("llama-2")
    values = glass.run(IDS)
    dim = glass.spec.dim
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(dim, dim) for _ in range(glass.spec.n_layers))
    torch.save(layers.state_dict(), tmp_path / "params.pt")
    found = read_translator(tmp_path / "params.pt", glass.weights, "tuned")
    h = np.asarray(values["blocks.0.hook_resid_post"], np.float32)
    with torch.no_grad():
        wanted = torch.tensor(h) + layers[1](torch.tensor(h))
    np.testing.assert_allclose(found(1, h), wanted.numpy(), atol=1e-5)
    torch.save({"0.weight": torch.zeros(dim, dim), "note": print}, tmp_path / "hostile.pt")
    with pytest.raises((UnsafeFile, FormatError)):
        read_translator(tmp_path / "hostile.pt", glass.weights, "tuned")


def test_a_lens_of_another_model_is_refused(tmp_path: Path) -> None:
    glass = glass_of("llama-2")
    save_file({"1.weight": np.zeros((3, 3), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(TensorMismatch, match="this model wants"):
        read_translator(tmp_path / "x.safetensors", glass.weights, "tuned")
    save_file({"J": np.zeros((3, 3), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="<layer>.weight"):
        read_translator(tmp_path / "x.safetensors", glass.weights, "jacobian")
