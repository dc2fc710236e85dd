"""What the glass shows and takes is what the law computes, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.test_native import weights
from tests.lens.models import glass_of
from vitral.errors import ContextOverflow, RequestError
from vitral.lens import Glass
from vitral.lens.glass import Edit
from vitral.model.law import KV_DEFAULT
from vitral.model.reference import Cache, Reference
from vitral.model.taps import taps

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
CASES = [
    ("llama-3.1", "Q4_1"),
    ("llama-dynamic", "F32"),
    ("mistral-window", "Q8_0"),
    ("mixtral", "Q4_0"),
    ("mixtral-window", "F16"),
]


def glass(case: tuple[str, str]) -> Glass:
    return Glass(weights(*case).spec, weights(*case), threads=1)


def by_law(case: tuple[str, str], ids: list[int], edits: dict[str, Edit] | None = None) -> dict[str, Any]:
    """The same by the reference."""
    held = weights(*case)
    seen: dict[str, Any] = {}

    def on_tap(name: str, value: Any) -> Any:
        seen[name] = value if edits is None or name not in edits else edits[name](value.copy())
        return seen[name]

    Reference(held.spec, held.law()).forward(ids, Cache(held.spec, KV_DEFAULT), on_tap)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_every_value_has_the_bits_of_the_law(case: tuple[str, str]) -> None:
    wanted, found = by_law(case, IDS), glass(case).run(IDS)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize("case", [CASES[0], CASES[3]])
def test_every_value_that_is_replaced_gives_the_bits_of_the_law(case: tuple[str, str]) -> None:
    here = glass(case)

    def halved(value: Any) -> Any:
        if value.dtype == np.int32:  # the chosen experts, in the other order
            return value[:, ::-1]
        return np.where(np.isfinite(value), value * np.float32(0.5), value)

    plain = here.logits(IDS)
    changed = 0
    for tap in taps(here.spec):
        wanted = by_law(case, IDS, {tap.name: halved})["unembed.hook_out"]
        found = here.logits(IDS, {tap.name: halved})
        assert np.array_equal(found, wanted), tap.name
        changed += not np.array_equal(found, plain)
    assert changed > len(taps(here.spec)) / 2


def test_a_longer_prompt_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.lens.glass._ROOM", 16)
    case = ("llama-3.1", "Q4_1")
    here = glass(case)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 160, 40)]
    for some in (ids[:5], ids, ids[:17]):
        assert np.array_equal(here.logits(some), by_law(case, some)["unembed.hook_out"])


def test_what_cannot_be_run_is_named() -> None:
    here = glass_of("llama-2")
    for ids, said in (([], "at least one"), ([160], "0 to 159"), ([-1], "0 to 159")):
        with pytest.raises(RequestError, match=said):
            here.run(ids)
    with pytest.raises(ContextOverflow, match="the model takes 64"):
        here.run([1] * 65)
    with pytest.raises(RequestError, match="its replacement has"):
        here.logits(IDS, {"hook_embed": lambda value: value[:-1]})
    with pytest.raises(RequestError, match="names no value"):
        here.run(IDS, ["*.hook_nonsense"])
    assert here.run(IDS, ["hook_embed"])["hook_embed"].shape == (len(IDS), 64)


def test_head_results_come_when_they_are_named() -> None:
    here = glass(("mixtral", "Q4_0"))
    found = here.run(IDS, ["*.hook_result", "*.hook_attn_out"])
    assert found.keys() == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.hook_result", "hook_attn_out")}
    for i in (0, 1):
        out = found[f"blocks.{i}.hook_attn_out"]
        np.testing.assert_allclose(found[f"blocks.{i}.attn.hook_result"].sum(axis=1), out, atol=1e-5)
    assert not any(name.endswith("hook_result") for name in here.run(IDS))


@pytest.mark.parametrize("case", [("llama-3.1", "F32"), ("mixtral", "Q4_0")])
def test_a_replaced_result_of_a_head_is_as_its_z_without_that_head(case: tuple[str, str]) -> None:
    here, name = glass(case), "blocks.0.attn.hook_result"

    def without_head_1(value: Any) -> Any:
        value[:, 1] = 0
        return value

    plain = here.run(IDS, ["hook_embed", "*.hook_attn_out", "*.hook_result", "unembed.hook_out"])
    found = here.run(IDS, ["*.hook_attn_out", name], {name: without_head_1})
    lost = plain["blocks.0.hook_attn_out"] - found["blocks.0.hook_attn_out"]
    assert not found[name][:, 1].any()
    np.testing.assert_allclose(lost, plain[name][:, 1], atol=1e-6)
    assert not np.array_equal(found["blocks.1.hook_attn_out"], plain["blocks.1.hook_attn_out"])
    same = here.run(IDS, ["unembed.hook_out"], {name: lambda value: value})["unembed.hook_out"]
    assert np.array_equal(same, plain["unembed.hook_out"])
    with pytest.raises(RequestError, match="N from 0 to"):
        here.logits(IDS, {"blocks.99.attn.hook_result": without_head_1})
