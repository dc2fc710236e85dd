"""Watching: the values of the reference, for the request that asks, at no other's cost of bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.doubles import HashForward
from tests.engine.test_native import engine, weights
from vitral.engine.engine import Engine
from vitral.engine.observe import Watch
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import RequestError
from vitral.model.reference import Cache, Reference
from vitral.model.taps import is_attention, taps

Array = NDArray[Any]
CASES = [("llama-3.1", "Q4_1"), ("mistral-window", "F32"), ("mixtral", "Q8_0")]
PROMPT = np.random.default_rng(8).integers(0, 160, 36).tolist()
Seen = dict[str, list[tuple[NDArray[np.int64], Array]]]


def watch(
    e: Engine, prompt: list[int], watches: list[Watch], n_new: int = 0, others: int = 0
) -> tuple[Seen, list[int]]:
    """What a request sees while others run beside it, and its tokens."""
    seen: Seen = {}
    for i in range(others):
        e.add(prompt[i : 9 + 3 * i] + [i], SamplingParams(max_tokens=6))
    tokens: list[int] = []
    id = e.add(
        prompt,
        SamplingParams(max_tokens=n_new),
        watch=watches,
        on_value=lambda name, places, rows: seen.setdefault(name, []).append((places, rows)),
    )
    while not e.idle:
        for event in e.step():
            assert not isinstance(event, Finished) or event.error is None, event
            if isinstance(event, NewToken) and event.request_id == id:
                tokens.append(event.token)
    return seen, tokens


def reference(case: tuple[str, str], ids: list[int]) -> dict[str, Array]:
    known = weights(*case)
    found: dict[str, Array] = {}

    def see(name: str, value: Array) -> None:
        found[name] = value.copy()

    Reference(known.spec, known.law()).forward(ids, Cache(known.spec, "f16"), see)
    return found


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_request_in_a_batch_sees_every_value_of_its_own_and_nothing_else(case: tuple[str, str]) -> None:
    e = engine(case, threads=2, step_tokens=13)
    seen, tokens = watch(e, PROMPT, [Watch(("*",))], n_new=4, others=5)
    ids = PROMPT + tokens[:-1]
    expected = reference(case, ids)
    assert set(seen) == set(expected)
    for name, whole in expected.items():
        places = np.concatenate([at for at, _ in seen[name]])
        if ".experts." not in name:
            assert places.tolist() == list(range(len(ids))), name
        done = 0
        for at, rows in seen[name]:
            if is_attention(name):
                part = whole[:, at, : rows.shape[-1]]
            else:
                part = whole[done : done + len(at)]
                done += len(at)
            assert rows.tobytes() == np.ascontiguousarray(part).tobytes(), name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_watching_changes_no_token_and_no_bit(case: tuple[str, str]) -> None:
    def outcome(watches: list[Watch]) -> tuple[list[bytes], list[int]]:
        rows: list[bytes] = []
        with engine(case).answer(
            PROMPT,
            SamplingParams(max_tokens=8),
            on_logits=lambda _, row: rows.append(row.tobytes()),
            watch=watches,
            on_value=(lambda *_: None) if watches else None,
        ) as answer:
            return rows, [event.token for event in answer if isinstance(event, NewToken)]

    plain = outcome([])
    assert len(plain[1]) == 8
    assert outcome([Watch(("*",))]) == plain
    assert outcome([Watch(("blocks.*.attn.hook_pattern",), top=3)]) == plain


def test_a_prefix_hit_hides_no_watched_position() -> None:
    case = CASES[0]
    e = engine(case)
    for positions, cached in [(None, 0), ((0,), 0), ((20, 35), 16), ((35,), 32), ((99,), 32)]:
        seen: list[int] = []
        list(e.answer(PROMPT, SamplingParams(max_tokens=1)))
        with e.answer(
            PROMPT,
            SamplingParams(max_tokens=1),
            watch=[Watch(("hook_embed",), positions=positions)],
            on_value=lambda _, places, rows: seen.extend(places.tolist()),  # noqa: B023
        ) as answer:
            list(answer)
        assert seen == (list(range(36)) if positions is None else [p for p in positions if p < 36])
        assert answer.cached == cached, positions


def test_a_request_that_is_put_back_sees_each_position_once() -> None:
    case = CASES[0]
    e = engine(case, n_pages=5, page_size=16)
    seen: list[int] = []
    e.add(PROMPT[:16], SamplingParams(max_tokens=40))
    e.add(
        PROMPT[:15],
        SamplingParams(max_tokens=30),
        watch=[Watch(("blocks.1.hook_resid_post",))],
        on_value=lambda _, places, rows: seen.extend(places.tolist()),
    )
    while not e.idle:
        e.step()
    assert seen == list(range(44))


def test_a_watch_takes_only_what_it_is_asked_for() -> None:
    case = CASES[0]
    whole, _ = watch(engine(case), PROMPT, [Watch(("*",))])
    watches = [
        Watch(("blocks.1.attn.hook_z",), heads=(1, 3), columns=(0, 2), since=30),
        Watch(("unembed.hook_out",), columns=(7, 3, 159), positions=(5, 35)),
        Watch(("blocks.0.attn.hook_pattern",), top=4, heads=(2,)),
        Watch(("blocks.0.mlp.hook_post",), top=5),
    ]
    some, _ = watch(engine(case), PROMPT, watches)

    def of(seen: Seen, name: str) -> Array:
        return seen[name][0][1]

    assert (of(some, "blocks.1.attn.hook_z") == of(whole, "blocks.1.attn.hook_z")[30:, [1, 3]][..., [0, 2]]).all()
    assert (of(some, "unembed.hook_out") == of(whole, "unembed.hook_out")[[5, 35]][:, [7, 3, 159]]).all()
    for name, rows in [
        ("blocks.0.attn.hook_pattern", of(whole, "blocks.0.attn.hook_pattern")[[2]]),
        ("blocks.0.mlp.hook_post", of(whole, "blocks.0.mlp.hook_post")),
    ]:
        best = np.argsort(-rows, axis=-1, kind="stable")[..., : of(some, name).shape[-1]]
        assert (of(some, name + ".indices") == best).all()
        assert (of(some, name) == np.take_along_axis(rows, best, axis=-1)).all()


def test_what_the_receiver_raises_ends_its_request_alone() -> None:
    e = engine(CASES[0])

    def fail(name: str, places: Array, rows: Array) -> None:
        raise ValueError("the receiver is full")

    bad = e.add(PROMPT, SamplingParams(max_tokens=3), watch=[Watch(("hook_embed",))], on_value=fail)
    good = e.add(PROMPT, SamplingParams(max_tokens=3))
    ends = {}
    while not e.idle:
        ends |= {event.request_id: event for event in e.step() if isinstance(event, Finished)}
    assert "the receiver is full" in str(ends[bad].error)
    assert ends[good].error is None


@pytest.mark.parametrize(
    ("watches", "said"),
    [
        ([Watch(("blocks.7.hook_resid_post",))], "no tap is called"),
        ([Watch(("hook_embed",), heads=(0,))], "has no heads"),
        ([Watch(("hook_embed",), columns=(64,))], "0 to 63"),
    ],
)
def test_a_watch_that_does_not_fit_is_refused(watches: list[Watch], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        engine(CASES[0]).add(PROMPT, SamplingParams(), watch=watches, on_value=lambda *_: None)


def test_a_watch_wants_somebody_who_sees_and_a_model_that_shows() -> None:
    with pytest.raises(RequestError, match="go together"):
        engine(CASES[0]).add(PROMPT, SamplingParams(), watch=[Watch(("hook_embed",))])
    with pytest.raises(RequestError, match="shows no values"):
        Engine(HashForward(), context_length=64).add(
            [1], SamplingParams(), watch=[Watch(("*",))], on_value=lambda *_: None
        )
    for wrong in [
        {"names": ()},
        {"names": "hook_embed"},
        {"names": ("*",), "top": 0},
        {"names": ("*",), "positions": (-1,)},
    ]:
        with pytest.raises(RequestError):
            Watch(**wrong)  # type: ignore[arg-type]


def test_every_tap_has_a_row_shape() -> None:
    from vitral.model.taps import row_shape

    for case in CASES:
        spec = weights(*case).spec
        expected = reference(case, PROMPT)
        for tap in taps(spec):
            if tap.name in expected and not is_attention(tap.name):
                assert expected[tap.name].shape[1:] == row_shape(spec, tap.name), tap.name
