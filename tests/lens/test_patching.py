"""Patching all of a run gives that run; a placebo gives nothing; paths add nothing that is not theirs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import Site, attribution_patching, logit_difference, patch, path_patch

CLEAN = [3, 1, 4, 1, 5, 9, 2, 6]
CORRUPT = [3, 1, 7, 1, 5, 9, 2, 6]
METRIC = logit_difference(5, 9)


@pytest.mark.parametrize("family", ["llama-2", "mixtral"])
def test_everything_from_the_clean_run_gives_its_bits_and_the_placebo_nothing(family: str) -> None:
    glass = glass_of(family)
    whole = patch(glass, CLEAN, CORRUPT, [Site("hook_embed"), Site("blocks.1.hook_resid_post")], METRIC)
    for one in whole:
        assert one.patched == one.clean and one.effect == 1
        assert one.placebo == 0
    clean = glass.run(CLEAN)
    edits = {"hook_embed": lambda value: clean["hook_embed"]}
    assert np.array_equal(glass.logits(CORRUPT, edits), clean["unembed.hook_out"])


def test_only_the_place_that_differs_restores_the_first_layer_and_random_directions_do_not() -> None:
    glass = glass_of("llama-2")
    sites = [Site("hook_embed", (2,)), Site("hook_embed", (1,)), Site("hook_embed", (7,))]
    found = patch(glass, CLEAN, CORRUPT, sites, METRIC, n_random=3)
    assert [one.effect for one in found] == [1, 0, 0]
    assert found[0].random is not None and found[0].random.n == 3 and found[0].random.mean != 1
    assert found[1].random is not None and found[1].random.mean == 0  # nothing differs there: nothing is moved


def test_heads_and_patterns_are_patched_alone() -> None:
    glass = glass_of("llama-2")
    clean, corrupt = glass.run(CLEAN), glass.run(CORRUPT)
    name = "blocks.1.attn.hook_z"
    expected = corrupt[name].copy()
    expected[:, 2] = clean[name][:, 2]
    by_hand = METRIC(glass.logits(CORRUPT, {name: lambda value: expected}))
    found = patch(glass, CLEAN, CORRUPT, [Site(name, None, 2), Site("blocks.0.attn.hook_pattern", (4,), 1)], METRIC)
    assert found[0].patched == by_hand
    assert found[1].placebo == 0


def test_a_path_through_every_later_value_is_the_whole_effect_of_the_sender() -> None:
    """In two blocks, what the first block's feed-forward part says reaches the end through the stream alone."""
    glass = glass_of("llama-2")
    sender = Site("blocks.0.hook_mlp_out")
    direct = patch(glass, CLEAN, CORRUPT, [sender], METRIC)[0]
    path = path_patch(glass, CLEAN, CORRUPT, sender, [Site("blocks.1.hook_resid_pre")], METRIC)
    assert path.effect == pytest.approx(direct.effect, abs=1e-6)
    assert path.placebo == 0
    nowhere = path_patch(glass, CLEAN, CORRUPT, sender, [Site("blocks.1.attn.hook_q", (0,))], METRIC)
    assert nowhere.effect == 0  # both prompts begin alike
    with pytest.raises(RequestError, match="does not lie after"):
        path_patch(glass, CLEAN, CORRUPT, sender, [Site("blocks.0.attn.hook_q")], METRIC)


def test_a_path_has_random_controls_with_an_interval() -> None:
    glass = glass_of("llama-2")
    sender, receivers = Site("blocks.0.hook_mlp_out"), [Site("blocks.1.hook_resid_pre")]
    found = path_patch(glass, CLEAN, CORRUPT, sender, receivers, METRIC, n_random=4, seed=1)
    assert found.random is not None
    assert found.random.n == 4
    assert found.random.low < found.random.high
    again = path_patch(glass, CLEAN, CORRUPT, sender, receivers, METRIC, n_random=4, seed=1)
    assert again == found
    direct = patch(glass, CLEAN, CORRUPT, [sender], METRIC, n_random=4, seed=1)[0]
    assert direct.random is not None  # in two blocks the path is all there is: the same draws, the same effects
    assert found.random.mean == pytest.approx(direct.random.mean, abs=1e-6)
    one_place = Site("blocks.0.hook_mlp_out", (1,))
    still = path_patch(glass, CLEAN, CORRUPT, one_place, receivers, METRIC, n_random=2)
    assert still.random is not None and still.random.mean == 0  # nothing differs before the places part


def test_attribution_patching_is_exact_where_the_model_is_linear() -> None:
    """Of the value before the unembedding the metric is a linear function: its gradient is known."""
    glass = glass_of("llama-2")
    u = glass.weights.tensors["unembed.weight"].dequantize()

    def gradients(ids: list[int], names: list[str]) -> dict[str, np.ndarray]:
        slope = np.zeros((len(ids), glass.spec.dim), np.float32)
        slope[-1] = u[5] - u[9]
        return dict.fromkeys(names, slope)

    names = ["unembed.hook_in"]
    found = attribution_patching(glass, CLEAN, CORRUPT, names, gradients, n_random=50)["unembed.hook_in"]
    gap = METRIC(glass.logits(CLEAN)) - METRIC(glass.logits(CORRUPT))
    assert found.effect.sum() == pytest.approx(gap, abs=1e-4)
    assert found.random is not None
    assert found.random.n == 50
    assert abs(found.random.mean) < abs(gap) / 2
    assert found.random.low < 0 < found.random.high  # a random direction leans to neither side
    assert attribution_patching(glass, CLEAN, CORRUPT, names, gradients)["unembed.hook_in"].random is None


def test_prompts_that_cannot_be_compared_are_refused() -> None:
    glass = glass_of("llama-2")
    with pytest.raises(RequestError, match="same number"):
        patch(glass, CLEAN, CORRUPT[:-1], [Site("hook_embed")], METRIC)
    with pytest.raises(RequestError, match="nothing can be restored"):
        patch(glass, CLEAN, CLEAN, [Site("hook_embed")], METRIC)
    with pytest.raises(RequestError, match="no value"):
        patch(glass, CLEAN, CORRUPT, [Site("hook_embedding")], METRIC)
