"""Weight views are the file's own values, and circuits what they say of the forward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import copying_score, neighbours, open_glass, ov_circuit, qk_circuit, singular_directions

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("family", ["llama-2", "llama-3.1", "llama-yarn", "mistral-nemo"])
def test_the_qk_circuit_gives_the_scores_of_the_forward_pass(family: str) -> None:
    glass = glass_of(family)
    values = glass.run(IDS)
    x = values["blocks.1.ln1.hook_normalized"].astype(float)
    for head in (0, 3):
        for query, key in ((7, 7), (7, 2), (4, 3)):
            left, right = qk_circuit(glass.weights, 1, head, query - key)
            score = values["blocks.1.attn.hook_attn_scores"][head, query, key]
            assert x[query] @ left @ right @ x[key] == pytest.approx(score, abs=2e-2)  # queries and keys are bfloat16


def test_the_ov_circuit_moves_what_attention_moves() -> None:
    glass = glass_of("llama-3.1")
    values = glass.run([7])  # one token attends to itself alone
    x = values["blocks.0.ln1.hook_normalized"][0].astype(float)
    moved = sum(x @ left @ right for left, right in (ov_circuit(glass.weights, 0, h) for h in range(4)))
    np.testing.assert_allclose(moved, values["blocks.0.hook_attn_out"][0], atol=2e-2)


def test_singular_directions_are_those_of_the_product() -> None:
    glass = glass_of("llama-2")
    left, right = ov_circuit(glass.weights, 0, 1)
    values = np.linalg.svd(left @ right, compute_uv=False)
    found = singular_directions(glass.weights, 0, 1, n=4)
    np.testing.assert_allclose([one.value for one in found], values[:4], rtol=1e-9)
    np.testing.assert_allclose(found[0].reads @ (left @ right), found[0].value * found[0].writes, atol=1e-9)


def test_the_copying_score_is_that_of_the_whole_matrix() -> None:
    glass = glass_of("llama-2")
    left, right = ov_circuit(glass.weights, 1, 2)
    w = glass.weights
    whole = w.matrix("embed.weight").astype(float) @ left @ (right * w.gain("ln_final")) @ w.W_U().astype(float)
    values = np.linalg.eigvals(whole)
    assert copying_score(w, 1, 2) == pytest.approx(values.sum().real / np.abs(values).sum(), abs=1e-4)


def test_the_neighbour_of_an_unembedding_vector_is_its_token() -> None:
    glass = glass_of("llama-2")
    u = glass.weights.W_U([23])[:, 0] / glass.weights.gain("ln_final")
    assert neighbours(glass.weights, u).raised[0][0] == 23


def test_rows_of_a_quantised_file_are_those_of_the_whole_tensor(smollm2: Path) -> None:
    weights = open_glass("smollm2:135m").weights
    for name in ("embed.weight", "blocks.3.attn.k.weight", "blocks.7.mlp.down.weight"):
        whole = weights.tensors[name].dequantize()
        assert np.array_equal(weights.rows(name, [0, 5, 191]), whole[[0, 5, 191]])
    k = weights.tensors["blocks.3.attn.k.weight"].dequantize()
    assert np.array_equal(weights.W_K(3, 5), k[64:128].T)  # three query heads share a key head


def test_what_does_not_exist_is_refused() -> None:
    weights = glass_of("llama-2").weights
    with pytest.raises(RequestError, match="head 4 does not exist; allowed: 0 to 3"):
        weights.W_O(0, 4)
    with pytest.raises(RequestError, match="layer 2"):
        weights.W_Q(2, 0)
    with pytest.raises(RequestError, match="row of embed.weight"):
        weights.W_E([-1])
