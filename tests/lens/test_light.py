"""The light set equals what the whole values say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vitral
from tests.engine.test_native import engine, weights
from vitral.engine.engine import Engine
from vitral.engine.request import NewToken, SamplingParams
from vitral.language_model import LanguageModel
from vitral.lens.light import LIGHT_AXES, Light, LightSet
from vitral.lens.record import record


def collect(model: LanguageModel, e: Engine, prompt: list[int], n_new: int) -> tuple[Light, list[int]]:
    light = LightSet(model)
    ids = list(prompt)
    params = SamplingParams(max_tokens=n_new)
    with e.answer(prompt, params, watch=light.watches, on_value=light.on_value) as answer:
        ids += [event.token for event in answer if isinstance(event, NewToken)]
    found = light.finish(ids)
    assert found is not None
    return found, ids


def test_lens_attention_and_head_attribution_equal_those_of_the_whole_values(smollm2: Path) -> None:
    with vitral.load(smollm2, threads=1, context_length=256) as model:
        prompt = model.tokenizer.encode("The capital of France is")
        light, ids = collect(model, model.engine, prompt, 6)
        whole = record(model, ids[:-1])
    n = len(ids) - 1
    assert light.positions.tolist() == list(range(n))
    assert light.targets.tolist() == ids[1:]
    assert light.experts is light.margins is None
    for i in (0, 7, whole.spec.n_layers - 1):
        pattern = whole["pattern", i]
        best = np.argsort(-pattern, axis=-1, kind="stable")[..., :8]
        shares = np.take_along_axis(pattern, best, axis=-1)
        assert (light.attention[i][..., : shares.shape[-1]] == shares).all()
        assert (light.keys[i][:, 8:] == best[:, 8:]).all()
    heads = whole.logit_attrs(whole.stack_head_results(), ids[1:])  # (L * H, T)
    assert np.abs(light.heads.reshape(-1, n) - heads).max() < 1e-4 * np.abs(heads).max()
    last = whole.logits[np.arange(n), ids[1:]]
    assert np.abs(light.lens[-1] - last).max() < 1e-5 * np.abs(last).max()


class Routed:
    """As much of a LanguageModel as the light set reads."""

    def __init__(self) -> None:
        case = ("mixtral", "Q8_0")
        self.weights, self.spec, self.engine = weights(*case), weights(*case).spec, engine(case)


def test_routes_come_with_the_margin_of_the_cut() -> None:
    model = Routed()
    prompt = list(range(20))
    light, ids = collect(model, model.engine, prompt, 3)  # type: ignore[arg-type]
    seen: dict[str, list[np.ndarray]] = {}  # type: ignore[type-arg]
    from vitral.engine.observe import Watch

    watch = [Watch(("blocks.*.mlp.hook_*",))]
    params = SamplingParams(max_tokens=0)
    list(
        model.engine.answer(
            ids[:-1], params, watch=watch, on_value=lambda name, _, rows: seen.setdefault(name, []).append(rows)
        )
    )
    assert light.experts is not None
    assert light.margins is not None
    assert light.shares is not None
    for i in range(model.spec.n_layers):
        logits = np.concatenate(seen[f"blocks.{i}.mlp.hook_router_logits"])
        ordered = np.sort(logits, axis=-1)[:, ::-1]
        assert (light.experts[i] == np.argsort(-logits, axis=-1, kind="stable")[:, :2]).all()
        assert (light.margins[i] == ordered[:, 1] - ordered[:, 2]).all()
        assert (light.shares[i] == np.concatenate(seen[f"blocks.{i}.mlp.hook_expert_weights_topk"])).all()


def test_what_is_reduced_on_the_way_is_what_is_reduced_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitral.lens.light._TOGETHER", 16)
    model = Routed()
    prompt, whole, pieces = list(range(30)), LightSet(model), LightSet(model)  # type: ignore[arg-type]
    ids = list(prompt)

    def both(name: str, positions: np.ndarray, rows: np.ndarray) -> None:  # type: ignore[type-arg]
        whole.on_value(name, positions, rows)
        pieces.on_value(name, positions, rows)

    with model.engine.answer(prompt, SamplingParams(max_tokens=30), watch=whole.watches, on_value=both) as answer:
        for event in answer:
            if isinstance(event, NewToken):
                ids.append(event.token)
                pieces.advance(ids)
    assert len(pieces._done) == 2
    a, b = whole.finish(ids), pieces.finish(ids)
    assert a is not None
    assert b is not None
    for name in LIGHT_AXES:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5, err_msg=name)
