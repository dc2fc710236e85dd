"""The reference passes every tap it declares, and obeys what a tap leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.parity.families import FAMILIES, random_weights
from vitral.model.arithmetic import parameters
from vitral.model.law import KvType
from vitral.model.reference import Cache, Reference
from vitral.model.taps import taps

IDS = list(range(1, 20))


def record(family: str) -> dict[str, NDArray[np.generic]]:
    spec = FAMILIES[family]
    seen: dict[str, NDArray[np.generic]] = {}

    def see(name: str, value: NDArray[np.generic]) -> None:
        assert name not in seen
        seen[name] = value

    Reference(spec, random_weights(spec)).forward(IDS, on_tap=see)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_declared_tap_is_seen_in_order_with_its_shape(family: str) -> None:
    spec, seen = FAMILIES[family], record(family)
    letters = {"T": len(IDS), "S": len(IDS), "C": spec.dim, "H": spec.n_heads, "K": spec.n_kv_heads, "D": spec.head_dim}
    letters |= {"F": spec.hidden_dim, "V": spec.vocab_size, "1": 1}
    if spec.moe is not None:
        letters |= {"E": spec.moe.n_experts, "k": spec.moe.n_experts_per_token}
    declared = [tap for tap in taps(spec) if tap.name in seen or "experts." not in tap.name]
    assert list(seen) == [tap.name for tap in declared]
    for tap in declared:
        shape = seen[tap.name].shape
        wanted = [letters.get(letter, shape[i]) for i, letter in enumerate(tap.shape.split())]
        assert list(shape) == wanted, tap


def test_the_residual_stream_is_the_sum_of_what_was_added() -> None:
    seen = record("mixtral")
    mid = seen["blocks.0.hook_resid_pre"] + seen["blocks.0.hook_attn_out"]  # type: ignore[operator]
    assert (seen["blocks.0.hook_resid_mid"] == mid).all()
    post = mid + seen["blocks.0.hook_mlp_out"]
    assert (seen["blocks.1.hook_resid_pre"] == post).all()


def test_a_token_reaches_only_its_chosen_experts() -> None:
    seen = record("mixtral")
    chosen = seen["blocks.0.mlp.hook_expert_indices"]
    for e in range(8):
        routed = int((chosen == e).sum())
        name = f"blocks.0.mlp.experts.{e}.hook_out"
        assert (len(seen[name]) if name in seen else 0) == routed
    weights = seen["blocks.0.mlp.hook_expert_weights_topk"]
    assert np.allclose(weights.sum(axis=1), 1)  # type: ignore[attr-defined]


def test_a_window_hides_what_is_further_back() -> None:
    pattern = record("mistral-window")["blocks.0.attn.hook_pattern"]
    for t in range(len(IDS)):
        seen = np.flatnonzero(pattern[0, t])
        assert seen.tolist() == list(range(max(0, t - 6), t + 1))


def test_what_a_tap_returns_is_what_the_model_goes_on_with() -> None:
    spec = FAMILIES["llama-3.1"]
    model = Reference(spec, random_weights(spec))

    def silence(name: str, value: NDArray[np.generic]) -> NDArray[np.generic] | None:
        return np.zeros_like(value) if name.endswith(("hook_attn_out", "hook_mlp_out")) else None

    seen: list[NDArray[np.generic]] = []

    def embed(name: str, value: NDArray[np.generic]) -> None:
        if name in ("hook_embed", "blocks.1.hook_resid_post"):
            seen.append(value)

    model.forward(IDS, on_tap=lambda name, value: (embed(name, value), silence(name, value))[1])  # type: ignore[func-returns-value]
    assert (seen[0] == seen[1]).all()
    with pytest.raises(ValueError, match=r"hook_embed has shape \(19, 64\); its replacement has \(1, 64\)"):
        model.forward(IDS, on_tap=lambda name, value: value[:1])


def test_looking_changes_no_bit() -> None:
    for spec in FAMILIES.values():
        model = Reference(spec, random_weights(spec))
        assert model.forward(IDS).tobytes() == model.forward(IDS, on_tap=lambda name, value: None).tobytes()


@pytest.mark.parametrize(("kv_type", "most"), [("f16", 2e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_a_smaller_cache_rounds_keys_and_values_to_nearest(kv_type: KvType, most: float) -> None:
    spec = FAMILIES["llama-2"]
    model = Reference(spec, random_weights(spec))
    exact, rounded = model.forward(IDS), model.forward(IDS, Cache(spec, kv_type))
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < error < most


def test_the_families_together_have_what_the_architectures_have() -> None:
    specs = FAMILIES.values()
    assert {spec.rope.scaling for spec in specs} == {"none", "linear", "dynamic", "yarn", "llama3", "factors"}
    assert any(spec.sliding_window and spec.sliding_window < len(IDS) for spec in specs)
    assert all(parameters(spec).total < 500_000 for spec in specs)
