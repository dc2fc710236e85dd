"""A ModelSpec cannot contradict itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from vitral.errors import SpecError
from vitral.model.presets import preset
from vitral.model.spec import MoeSpec, RopeSpec

SPEC = preset("llama-2-70b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 7}, "n_heads 64 is not a multiple of n_kv_heads 7"),
        ({"head_dim": 127}, "head_dim 127 is odd"),
        ({"dim": 0}, "dim is 0; allowed: a whole number from 1"),
        ({"dim": 2**40}, "dim is 1099511627776; allowed"),
        ({"n_layers": 2.0}, "n_layers is 2.0"),
        ({"n_layers": True}, "n_layers is True"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"rope": RopeSpec(1e4, "factors", factors=(1.0,))}, "rope has 1 frequency factors; head_dim 128 wants 64"),
    ],
)
def test_a_contradiction_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(SPEC, **change)  # type: ignore[arg-type]


def test_a_spec_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.dim = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "linear"}, "'linear' needs factor"),
        ({"scaling": "none", "factor": 2.0}, "'none' does not use factor"),
        ({"scaling": "ntk"}, "rope scaling is 'ntk'; allowed: none, linear"),
        ({"scaling": "linear", "factor": float("nan")}, "rope factor is nan"),
        ({"scaling": "factors", "factors": (1.0, -1.0)}, "rope factors is -1.0"),
    ],
)
def test_a_rope_scaling_has_its_fields_and_no_others(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RopeSpec(**{"theta": 1e4, **fields})  # type: ignore[arg-type]


def test_a_token_cannot_use_more_experts_than_there_are() -> None:
    with pytest.raises(SpecError, match="n_experts_per_token is 3 but there are only 2 experts"):
        MoeSpec(2, 3)
