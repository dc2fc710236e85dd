"""Weight views are the file's own values, and circuits what they say of the forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.lens.models import as_weights, glass_of
from tests.parity.families import FAMILIES, random_weights
from vitral.errors import RequestError
from vitral.lens import (
    Glass,
    copy_scores,
    copying_score,
    neighbours,
    open_glass,
    ov_circuit,
    qk_circuit,
    singular_directions,
)

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
            assert x[query] @ left @ right @ x[key] == pytest.approx(score, abs=8e-3)  # queries and keys are bfloat16


def test_the_ov_circuit_moves_what_attention_moves() -> None:
    glass = glass_of("llama-3.1")
    values = glass.run([7])  # one token attends to itself alone
    x = values["blocks.0.ln1.hook_normalized"][0].astype(float)
    moved = sum(x @ left @ right for left, right in (ov_circuit(glass.weights, 0, h) for h in range(4)))
    np.testing.assert_allclose(moved, values["blocks.0.hook_attn_out"][0], atol=6e-3)


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


def test_a_head_that_was_built_to_copy_has_the_copy_score_of_one() -> None:
    """W_V and W_O of one head read and write the identity, the first block is silent: what it attends to, it says."""
    spec = replace(FAMILIES["llama-2"], dim=64, n_heads=1, n_kv_heads=1, head_dim=64, vocab_size=40)
    values = random_weights(spec)
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 64)))[0].astype(np.float32)
    values["embed.weight"] = values["unembed.weight"] = 8 * basis[:40]
    for name in ("blocks.0.attn.o.weight", "blocks.0.mlp.down.weight"):
        values[name] = np.zeros_like(values[name])
    values["blocks.1.ln1.weight"] = values["ln_final.weight"] = np.ones(64, np.float32)
    values["blocks.1.attn.v.weight"] = values["blocks.1.attn.o.weight"] = np.eye(64, dtype=np.float32)
    glass = Glass(spec, as_weights(spec, values))
    ids = [int(i) for i in np.random.default_rng(0).choice(40, 20, replace=False)]
    seen = glass.run(ids, ["blocks.0.hook_resid_post"])
    silent, copier = copy_scores(seen, glass.weights, ids, [(0, 0), (1, 0)], top=1)
    assert (copier.layer, copier.head) == (1, 0)
    assert copier.score.mean == copier.score.low == 1
    assert copier.control.mean == 0
    assert copier.score.n == 20
    assert silent.score.mean == silent.control.mean == 1  # all logits are alike: nothing is said, so nothing is above
    with pytest.raises(RequestError, match="record it"):
        copy_scores({}, glass.weights, ids, [(0, 0)])
    with pytest.raises(RequestError, match="one kind"):
        copy_scores(glass.run([3, 3], ["blocks.0.hook_resid_post"]), glass.weights, [3, 3], [(0, 0)])
