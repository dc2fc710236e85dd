"""Requests with different adapters, or none, in one batch: the bits of the law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.test_native import CONTEXT, weights
from tests.formats.test_adapters import random_parts, write_peft
from tests.parity.families import FAMILIES, random_weights
from vitral.engine.adapters import Adapters
from vitral.engine.engine import Engine
from vitral.engine.interventions import Intervention
from vitral.engine.native import NativeForward, native_model
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import RequestError, VitralError
from vitral.formats.adapters import Adapter, read_adapter
from vitral.formats.weights import Weights
from vitral.model import law
from vitral.model.law import F32, LowRank
from vitral.model.reference import Cache, Reference
from vitral.native import available

CASES = [("llama-3.1", "Q4_1"), ("mixtral-dense-first", "Q8_0"), ("mistral-nemo", "F32")]
PROMPTS = [[5, 9, 13, 2, 7, 100, 31, 8, 44], [5, 9, 13, 2, 7, 100, 31, 8, 45, 46, 47], [1], [90, 91, 92]]


def adapter(case: tuple[str, str], seed: int, rank: int = 3) -> Adapter:
    parts = random_parts(FAMILIES[case[0]], rank=rank, scale=0.25 + seed, seed=seed)
    if seed == 1:  # one that leaves some matrices alone
        parts = {name: part for name, part in parts.items() if ".attn." in name or "experts.1" in name}
    return Adapter(Path("made"), parts, f"digest {case} {seed} {rank}")


def engine_of(case: tuple[str, str], *, threads: int = 1, isa: str | None = None) -> tuple[Engine, Adapters]:
    known = weights(*case)
    model = native_model(
        known.spec,
        Weights(known.spec, dict(known.tensors)),
        threads=threads,
        isa=isa or available()[-1],
        context_length=CONTEXT,
    )
    forward = NativeForward(model, model.new_cache(64, 16, "f16"), known.spec.vocab_size)
    engine = Engine(forward, context_length=CONTEXT)
    return engine, Adapters(forward, engine)


def expected(case: tuple[str, str], ids: list[int], parts: dict[str, LowRank] | None) -> bytes:
    reference = Reference(FAMILIES[case[0]], weights(*case).law(), adapter=parts)
    return reference.forward(ids, Cache(FAMILIES[case[0]], "f16")).tobytes()


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("isa", available())
def test_each_request_of_a_mixed_batch_has_the_bits_of_the_reference_with_its_adapter(
    case: tuple[str, str], isa: str
) -> None:
    engine, adapters = engine_of(case, threads=2, isa=isa)
    parts: list[Any] = [None, adapter(case, 0).parts, adapter(case, 1, rank=17).parts]
    loaded = [None, adapters.load("a", adapter(case, 0)), adapters.load("b", adapter(case, 1, rank=17))]
    rows: dict[int, list[F32]] = {}
    asked = {}
    for number, prompt in enumerate(PROMPTS * 2):
        mine: list[F32] = []

        def keep(_: int, row: F32, mine: list[F32] = mine) -> None:
            mine.append(row.copy())

        which = number % 3
        id = engine.add(prompt, SamplingParams(max_tokens=3), on_logits=keep, adapter=loaded[which])
        asked[id], rows[id] = (prompt, which), mine
    tokens: dict[int, list[int]] = {id: [] for id in asked}
    while not engine.idle:
        for event in engine.step():
            assert not isinstance(event, Finished) or event.error is None, event
            if isinstance(event, NewToken):
                tokens[event.request_id].append(event.token)
    for id, (prompt, which) in asked.items():
        assert np.stack(rows[id]).tobytes() == expected(case, prompt + tokens[id][:-1], parts[which])


def logits_of(engine: Engine, ids: list[int], **options: Any) -> F32:
    found: list[F32] = []
    asked = engine.answer(
        ids, SamplingParams(max_tokens=1), on_choice=lambda _, row: found.append(row.copy()), **options
    )
    for event in asked:
        assert not isinstance(event, Finished) or event.error is None, event
    return found[0]


def test_the_prefix_cache_never_gives_pages_of_another_adapter() -> None:
    case = CASES[0]
    ids = list(range(40))
    engine, adapters = engine_of(case)
    a, b = adapters.load("a", adapter(case, 0)), adapters.load("b", adapter(case, 1))
    found = [logits_of(engine, ids, adapter=which) for which in (None, a, b, None, a, b)]
    fresh = []
    for name in (None, "a", "b"):
        other, its = engine_of(case)
        loaded = None if name is None else its.load(name, adapter(case, {"a": 0, "b": 1}[name]))
        fresh.append(logits_of(other, ids, adapter=loaded))
    for n in range(3):
        assert found[n].tobytes() == found[n + 3].tobytes() == fresh[n].tobytes()
    assert len({row.tobytes() for row in found}) == 3
    assert engine.answer(ids, SamplingParams(max_tokens=1), adapter=a).cached == 0  # not begun yet
    with engine.answer(ids, SamplingParams(max_tokens=1), adapter=a) as answer:
        list(answer)
        assert answer.cached == 32


def test_results_of_heads_are_not_replaced_under_an_adapter() -> None:
    engine, adapters = engine_of(CASES[0])
    change = (Intervention("zero", tap="blocks.0.attn.hook_result", heads=(1,)),)
    with pytest.raises(RequestError, match="an adapter adds to it; replace hook_z"):
        engine.answer(
            [1, 2], SamplingParams(max_tokens=1), adapter=adapters.load("a", adapter(CASES[0], 0)), interventions=change
        )
    with engine.answer([1, 2], SamplingParams(max_tokens=1), interventions=change) as answer:  # made without weights
        error = next(event.error for event in answer if isinstance(event, Finished))
    assert isinstance(error, RequestError) and "without its weights at hand" in str(error)


def test_adapters_come_and_go_while_requests_run() -> None:
    case = CASES[0]
    engine, adapters = engine_of(case)
    a = adapters.load("a", adapter(case, 0))
    with pytest.raises(RequestError, match="already"):
        adapters.load("a", adapter(case, 1))
    id = engine.add(PROMPTS[0], SamplingParams(max_tokens=5), adapter=a)
    engine.step()
    with pytest.raises(RequestError, match="have not ended"):
        adapters.unload("a")
    adapters.load("b", adapter(case, 1))
    engine.cancel(id)
    engine.step()
    adapters.unload("a")
    assert adapters.names() == ["b"]
    with pytest.raises(RequestError, match="loaded: b"):
        adapters.find("a")
    late = list(engine.answer(PROMPTS[0], SamplingParams(max_tokens=5), adapter=a))
    assert isinstance(late[-1], Finished) and isinstance(late[-1].error, VitralError)
    assert "not loaded" in str(late[-1].error)


def test_a_low_rank_product_stays_within_the_bound_of_the_merged_matrix() -> None:
    """Both round: r + K products a sum in the adapter's way, K in the merged one, and one rounding of each weight."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((5, 96)).astype(np.float32), rng.standard_normal((32, 96)).astype(np.float32)
    part = LowRank(
        rng.standard_normal((7, 96)).astype(np.float32), rng.standard_normal((32, 7)).astype(np.float32), 0.375
    )
    apart = law.low_rank(part, x, law.linear(w, x)).astype(np.float64)
    merged = w.astype(np.float64) + part.scale * part.b.astype(np.float64) @ part.a.astype(np.float64)
    exact = x.astype(np.float64) @ merged.T
    magnitude = np.abs(x) @ (np.abs(w) + part.scale * np.abs(part.b) @ np.abs(part.a)).T
    assert (np.abs(apart - exact) <= (96 + 7 + 4) * 2.0**-24 * magnitude).all()


def test_peft_in_float32_gives_the_same_logits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from tests.parity.test_transformers import their_model

    spec = FAMILIES["llama-3.1"]
    base = their_model(spec, random_weights(spec))
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    tuned = peft.get_peft_model(base, config).eval()
    tuned.save_pretrained(tmp_path / "tuned")
    found = read_adapter(tmp_path / "tuned", spec)
    assert len(found.parts) == 4 * spec.n_layers
    ids = PROMPTS[1]
    with torch.no_grad():
        theirs = tuned(torch.tensor([ids])).logits[0].numpy()
    ours = Reference(spec, random_weights(spec), adapter=found.parts).forward(ids)
    plain = Reference(spec, random_weights(spec)).forward(ids)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(np.abs(theirs).max()))
    assert np.abs(plain - theirs).max() > 0.01 * np.abs(theirs).max()


def test_a_folder_that_peft_could_have_saved_loads_into_a_running_engine(tmp_path: Path) -> None:
    case = CASES[1]
    parts = random_parts(FAMILIES[case[0]], rank=2, scale=1.0)
    folder = write_peft(tmp_path / "experts", parts, {"r": 2, "lora_alpha": 2})
    engine, adapters = engine_of(case)
    loaded = adapters.load("experts", read_adapter(folder, FAMILIES[case[0]]))
    assert logits_of(engine, PROMPTS[3], adapter=loaded).tobytes() == expected(case, PROMPTS[3], parts)[-640:]
