"""A silenced head or expert says nothing, everything else is as before, in the law and in the engine alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from examples.planted_experts import DOMAINS, main, plant
from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import (
    Glass,
    domain_specialisation,
    edits_without,
    expert_effects,
    load_without,
    open_glass,
    token_losses,
    without,
)

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_zeroed_weights_and_zeroed_values_are_the_same_bits() -> None:
    for family in ("llama-3.1", "mixtral"):
        glass = glass_of(family)
        experts = [(0, 3), (1, 0)] if glass.spec.moe else []
        less = Glass(glass.spec, without(glass.weights.tensors, [(0, 1), (1, 2)], experts))
        edits = edits_without(glass.spec, [(0, 1), (1, 2)], experts)
        assert np.array_equal(less.logits(IDS), glass.logits(IDS, edits))
        assert not np.array_equal(less.logits(IDS), glass.logits(IDS))


def test_the_engine_without_a_head_gives_the_bits_of_the_law_without_it(smollm2: Path) -> None:
    heads = [(0, 8), (13, 4)]
    with load_without("smollm2:135m", heads, threads=1) as model:
        ids = model.tokenizer.encode("One two one")
        fast = model.logits(ids)
    glass = open_glass("smollm2:135m")
    assert np.array_equal(fast, glass.logits(ids, edits_without(glass.spec, heads)))


def test_rerouting_sends_tokens_elsewhere_and_zeroing_does_not() -> None:
    glass = glass_of("mixtral")
    names = ["blocks.0.mlp.hook_expert_indices"]
    before = glass.run(IDS, names)[names[0]]
    busy = int(np.bincount(before.reshape(-1)).argmax())
    zeroed = glass.run(IDS, names, edits_without(glass.spec, experts=[(0, busy)]))[names[0]]
    rerouted = glass.run(IDS, names, edits_without(glass.spec, experts=[(0, busy)], reroute=True))[names[0]]
    assert np.array_equal(zeroed, before)
    assert busy in before and busy not in rerouted


def test_knocking_out_a_domains_experts_hurts_that_domain_and_no_other() -> None:
    glass, texts = plant()
    routes = {
        name: glass.run(ids, ["*.hook_expert_indices"])["blocks.0.mlp.hook_expert_indices"]
        for name, ids in texts.items()
    }
    shares = domain_specialisation(routes, 6)
    carriers = {name: tuple(sorted(np.argsort(-share)[:2].tolist())) for name, share in shares.items()}
    assert carriers == DOMAINS  # the routes alone name them

    def losses(experts: Sequence[tuple[int, int]], ids: Sequence[int]) -> np.ndarray:
        return token_losses(glass.logits(ids, edits_without(glass.spec, experts=experts)), ids)

    untouched = {name: losses((), ids).mean() for name, ids in texts.items()}
    assert all(loss < 0.5 for loss in untouched.values()), untouched  # it knows both; by chance ln 40 = 3.7
    for name, experts in carriers.items():
        silenced = [(0, e) for e in experts]
        for other, ids in texts.items():
            rise = losses(silenced, ids).mean() - untouched[other]
            assert rise > 2 if other == name else abs(rise) < 0.05, (name, other, rise)
    idle = losses([(0, 4), (0, 5)], texts["law"])  # the placebo: as many experts that nobody chose
    assert np.array_equal(idle, losses((), texts["law"]))
    one = expert_effects(losses, [(0, 0)], texts)[0]
    assert one.rise["law"].is_above(0) and not one.rise["medicine"].is_above(0.05)


def test_the_example_prints_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "law: its tokens go to experts [0, 1] (planted: [0, 1])" and len(lines) == 6


def test_what_does_not_exist_or_cannot_be_silenced_alone_is_refused() -> None:
    glass = glass_of("mixtral-window")
    with pytest.raises(RequestError, match="head 9 does not exist; allowed: 0 to 3"):
        without(glass.weights.tensors, [(0, 9)])
    with pytest.raises(RequestError, match="expert 4"):
        edits_without(glass.spec, experts=[(0, 4)])
    with pytest.raises(RequestError, match="fewer experts than a token needs"):
        edits_without(glass.spec, experts=[(0, 0), (0, 1)], reroute=True)
    with pytest.raises(RequestError, match="there are none"):
        edits_without(glass_of("llama-2").spec, experts=[(0, 0)])
