"""The engine on the native model: the bits of the law, however requests are mixed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from tests.parity.families import FAMILIES, random_weights
from vitral.engine.engine import Engine
from vitral.engine.native import NativeForward, native_model
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.formats.quantize import encode
from vitral.formats.quants import TYPES, type_info
from vitral.formats.weights import Tensor, Weights
from vitral.model.reference import Cache, Reference
from vitral.native import available

CONTEXT = 64
CASES = [("llama-3.1", "Q4_1"), ("mistral-window", "Q8_0"), ("mixtral", "Q4_0"), ("mistral-nemo", "F32")]
WARM = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=10)
COLD = SamplingParams(max_tokens=10)


@cache
def weights(family: str, type_: str) -> Weights:
    spec = FAMILIES[family]
    if type_info(type_).block > 32:  # K-quants want rows of 256
        spec = replace(spec, dim=256, n_heads=8, n_kv_heads=2, head_dim=32, hidden_dim=256)
    tensors = {}
    for name, values in random_weights(spec).items():
        kind = type_ if values.ndim == 2 else "F32"
        raw = encode(kind, values.reshape(-1, values.shape[-1]))  # type: ignore[arg-type]
        tensors[name] = Tensor(name, type_info(kind), values.shape, lambda raw=raw: raw)  # type: ignore[misc]
    return Weights(spec, tensors)


def engine(
    case: tuple[str, str],
    *,
    threads: int = 1,
    isa: str | None = None,
    n_pages: int = 64,
    page_size: int = 16,
    **options: int,
) -> Engine:
    spec = weights(*case).spec
    model = native_model(
        spec,
        Weights(spec, dict(weights(*case).tensors)),
        threads=threads,
        isa=isa or available()[-1],
        context_length=CONTEXT,
    )
    forward = NativeForward(model, model.new_cache(n_pages, page_size, "f16"), spec.vocab_size, weights(*case).tensors)
    return Engine(forward, context_length=CONTEXT, **options)  # type: ignore[arg-type]


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 160, 40).tolist()
    return [shared[: 1 + (7 * i) % 40] + rng.integers(0, 160, 1 + i % 5).tolist() for i in range(16)]


Outcome = dict[int, tuple[bytes, tuple[int, ...]]]


def run(e: Engine, which: list[int], *, watch: bool) -> Outcome:
    """All requests of `which` together: their logits at every position, as bytes, and their tokens."""
    rows: dict[int, list[bytes]] = {i: [] for i in which}
    tokens: dict[int, list[int]] = {i: [] for i in which}
    number = {}
    for i in which:
        keep = (lambda position, row, i=i: rows[i].append(row.tobytes())) if watch else None
        number[e.add(prompts()[i], WARM if i % 2 else COLD, client=str(i % 3), on_logits=keep)] = i
    while not e.idle:
        for event in e.step():
            if isinstance(event, NewToken):
                tokens[number[event.request_id]].append(event.token)
            assert not isinstance(event, Finished) or event.error is None, event
    return {i: (b"".join(rows[i]), tuple(tokens[i])) for i in which}


@cache
def alone(case: tuple[str, str]) -> Outcome:
    e = engine(case, prefix_cache=False)
    return {i: run(e, [i], watch=True)[i] for i in range(16)}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_logits_are_those_of_the_reference(case: tuple[str, str]) -> None:
    spec = FAMILIES[case[0]]
    reference = Reference(spec, weights(*case).law())
    for i in (2, 5):
        logits, tokens = alone(case)[i]
        ids = [*prompts()[i], *tokens[:-1]]
        assert reference.forward(ids, Cache(spec, "f16")).tobytes() == logits


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("together", [2, 5, 16])
def test_the_same_bits_in_batches_of_any_size_and_order(case: tuple[str, str], together: int) -> None:
    expected = alone(case)
    order = np.random.default_rng(together).permutation(16).tolist()
    e = engine(case, threads=2)
    for start, end in pairwise([*range(0, 16, together), 16]):
        some = order[start:end]
        assert run(e, some, watch=True) == {i: expected[i] for i in some}


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("step_tokens", [1, 7, 64, 512])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_the_same_tokens_for_any_chunk_with_prefix_cache_or_without(
    case: tuple[str, str], step_tokens: int, prefix_cache: bool
) -> None:
    expected = {i: tokens for i, (_, tokens) in alone(case).items()}
    e = engine(case, step_tokens=step_tokens, prefix_cache=prefix_cache)
    for some in (list(range(8)), list(range(8, 16))):
        got = run(e, some, watch=False)
        assert {i: tokens for i, (_, tokens) in got.items()} == {i: expected[i] for i in some}


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_for_every_instruction_set_and_number_of_threads(
    case: tuple[str, str], isa: str, threads: int
) -> None:
    some = [0, 5, 11, 14]
    assert run(engine(case, isa=isa, threads=threads), some, watch=True) == {i: alone(case)[i] for i in some}


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize(("page_size", "n_pages"), [(32, 40), (48, 30), (64, 20)])
def test_the_same_bits_for_every_page_size(case: tuple[str, str], page_size: int, n_pages: int) -> None:
    e = engine(case, page_size=page_size, n_pages=n_pages)
    assert run(e, list(range(16)), watch=True) == alone(case)


@pytest.mark.parametrize("family", ["mistral-window", "mixtral"])
@pytest.mark.parametrize("type_", [name for name in TYPES if (("mistral-window", name)) not in CASES])
def test_every_weight_type_gives_the_same_bits_in_a_mix_as_alone(family: str, type_: str) -> None:
    case = (family, type_)
    some = [3, 10, 15]
    plain = engine(case, prefix_cache=False, isa="scalar")
    expected = {i: run(plain, [i], watch=True)[i] for i in some}
    assert run(engine(case, threads=2, step_tokens=7), [15, 3, 10], watch=True) == expected


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_requests_that_were_put_back_give_the_same_bits(case: tuple[str, str]) -> None:
    e = engine(case, n_pages=6)  # 96 positions for requests of up to 54
    assert run(e, list(range(16)), watch=True) == alone(case)


def test_a_nan_in_the_weights_ends_the_request_with_an_error() -> None:
    case = ("llama-3.1", "Q4_1")
    good = weights(*case)
    broken = np.full((1, 64), np.nan, np.float32).view(np.uint8)
    tensors = dict(good.tensors) | {
        "ln_final.weight": Tensor("ln_final.weight", type_info("F32"), (64,), lambda: broken)
    }
    spec = good.spec
    model = native_model(spec, Weights(spec, tensors), threads=1, isa=available()[-1], context_length=CONTEXT)
    e = Engine(NativeForward(model, model.new_cache(8, 16, "f16"), spec.vocab_size), context_length=CONTEXT)
    e.add([1, 2, 3], COLD)
    (end,) = e.step()
    assert isinstance(end, Finished) and end.reason == "error" and "nan" in str(end.error)


def test_final_hidden_states_give_the_logits_that_came_with_them() -> None:
    e, spec = engine(("llama-3.1", "F32")), FAMILIES["llama-3.1"]
    hidden: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    e.add(
        [3, 1, 4, 1, 5],
        SamplingParams(max_tokens=0),
        on_hidden=lambda _, row: hidden.append(row.copy()),
        on_logits=lambda _, row: logits.append(row.copy()),
    )
    while not e.idle:
        e.step()
    loaded = weights("llama-3.1", "F32")
    name = "embed.weight" if spec.tied_embeddings else "unembed.weight"
    matrix = loaded.tensors[name].dequantize().reshape(spec.vocab_size, spec.dim)
    np.testing.assert_allclose(np.array(hidden) @ matrix.T, np.array(logits), rtol=1e-4, atol=1e-4)
