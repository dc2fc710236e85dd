"""The way from the residual stream to logits: the law's bits, its parts, and what goes back through a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.test_native import CASES, engine, weights
from vitral.engine.forward import ShowsTaps
from vitral.lens.unembedding import Unembedding
from vitral.model.reference import Reference

TYPES = [("llama-2", "F16"), ("llama-2", "Q6_K"), ("mixtral", "Q5_1"), *CASES]


@pytest.mark.parametrize("case", TYPES)
def test_the_last_residual_gives_the_models_logits_to_the_bit(case: tuple[str, str]) -> None:
    held = weights(*case)
    seen: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    logits = Reference(held.spec, held.law()).forward(
        [3, 1, 4, 1, 5], on_tap=lambda name, value: seen.update({name: value})
    )
    last = seen[f"blocks.{held.spec.n_layers - 1}.hook_resid_post"]
    for one in (Unembedding.by_law(held.spec, held.law()), Unembedding.by_kernels(held.spec, held)):
        assert (one.read(last) == seen["unembed.hook_in"]).all()
        assert (one.logits(last) == logits).all()
        ids = [0, 7, 7, 100, 3]
        own = logits[np.arange(5), ids]
        scale = np.abs(logits).max()
        np.testing.assert_allclose(one.logit_of(last, ids), own, atol=1e-5 * scale)
        along = (last * one.directions(ids, seen["ln_final.hook_scale"])).sum(axis=1)
        np.testing.assert_allclose(along + one.rounding(last, ids), own, atol=1e-5 * scale)
        assert one.rounding(last, ids).any() == one.is_quantised


@pytest.mark.parametrize("case", TYPES)
def test_project_back_is_the_transposed_product(case: tuple[str, str]) -> None:
    held, forward = weights(*case), engine(case).forward
    assert isinstance(forward, ShowsTaps)
    rng = np.random.default_rng(4)
    for name in ("blocks.0.attn.o.weight", "blocks.1.attn.k.weight", "unembed.weight"):
        if name not in held:
            continue
        matrix = held[name].dequantize()
        for n in (1, 5, 70):
            x = rng.standard_normal((n, len(matrix))).astype(np.float32)
            exact = x.astype(np.float64) @ matrix
            found = forward.project_back(name, x)
            assert found.shape == (n, matrix.shape[1])
            bound = len(matrix) * 2**-24 * (np.abs(x) @ np.abs(matrix)).max()  # of a sum of that many float32
            assert np.abs(found - exact).max() <= bound


@pytest.mark.parametrize("threads", [2, 3])
def test_project_back_has_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    case = ("mixtral", "Q8_0")
    x = np.random.default_rng(1).standard_normal((9, weights(*case).spec.vocab_size)).astype(np.float32)
    one, more = (engine(case, threads=n).forward for n in (1, threads))
    assert isinstance(one, ShowsTaps)
    assert isinstance(more, ShowsTaps)
    name = "unembed.weight"
    assert (one.project_back(name, x) == more.project_back(name, x)).all()


def test_a_matrix_that_does_not_exist_is_named() -> None:
    forward = engine(("mixtral", "Q8_0")).forward
    assert isinstance(forward, ShowsTaps)
    with pytest.raises(ValueError, match="nonsense"):
        forward.project_back("nonsense", np.zeros((1, 4), np.float32))
