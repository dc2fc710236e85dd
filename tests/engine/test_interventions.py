"""Interventions: the same bits in the engine, in a batch with others, and in the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.test_native import engine, weights
from vitral.engine.engine import Engine
from vitral.engine.intervention_values import FileSource, Values
from vitral.engine.interventions import Intervention, digest, from_document, to_document
from vitral.engine.observe import reference_taps
from vitral.engine.request import Finished, SamplingParams
from vitral.errors import RequestError
from vitral.model.reference import Cache, Reference
from vitral.model.taps import is_attention, row_shape, taps

CASES = [("llama-3.1", "Q4_1"), ("mistral-window", "F32"), ("mixtral", "Q8_0"), ("mixtral-window", "Q4_0")]
PROMPT = [5, 9, 13, 2, 7, 100, 31, 8, 44, 45, 46, 47, 3, 90, 91, 92, 93, 94]
OTHERS = [PROMPT, [1], PROMPT[:9] + [4, 4]]


def logits(e: Engine, requests: list[tuple[list[int], tuple[Intervention, ...]]]) -> list[bytes]:
    """All positions' logits of requests that share the steps."""
    rows: dict[int, list[bytes]] = {}
    for prompt, changes in requests:
        mine: list[bytes] = []
        id = e.add(
            prompt,
            SamplingParams(max_tokens=0),
            on_logits=lambda _, row, mine=mine: mine.append(row.tobytes()),  # type: ignore[misc]
            interventions=changes,
        )
        rows[id] = mine
    while not e.idle:
        for event in e.step():
            assert not isinstance(event, Finished) or event.error is None, event
    return [b"".join(some) for some in rows.values()]


def law(case: tuple[str, str], ids: list[int], changes: tuple[Intervention, ...]) -> bytes:
    known = weights(*case)
    reference = Reference(known.spec, known.law())
    on_tap = reference_taps(changes, head_result=reference.head_result) if changes else None
    return reference.forward(ids, Cache(known.spec, "f16"), on_tap).tobytes()


def some(case: tuple[str, str], seed: int = 0) -> dict[str, tuple[Intervention, ...]]:
    """Every kind, for one model."""
    spec = weights(*case).spec
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Values:
        return Values.of(rng.standard_normal(shape).astype(np.float32))

    C, H, D = spec.dim, spec.n_heads, spec.head_dim
    pattern = np.tril(rng.random((2, H, 18)).astype(np.float32)[:, :, :], 0)
    kinds = {
        "replace": Intervention("replace", tap="blocks.0.hook_resid_post", values=draw(C), positions=(3, 17)),
        "mean": Intervention("mean", tap="blocks.1.hook_attn_out", values=draw(C), since=4),
        "resample": Intervention("resample", tap="blocks.0.attn.hook_q", values=draw(2, H, D), positions=(1, 5)),
        "patch": Intervention("patch", tap="hook_embed", values=draw(2, C), positions=(0, 9)),
        "zero": Intervention("zero", tap="blocks.1.attn.hook_v", heads=(0,), columns=(1, 3)),
        "steer": Intervention("steer", tap="blocks.0.hook_resid_pre", values=draw(C), coefficient=-1.5, since=2),
        "freeze": Intervention("freeze_attention", layer=1, values=Values.of(pattern), positions=(2, 16)),
        "heads": Intervention("knock_out", layer=0, heads=(0, 2)),
        "result": Intervention("zero", tap="blocks.0.attn.hook_result", heads=(1,), since=2),
        "results": Intervention("steer", tap="blocks.1.attn.hook_result", values=draw(H, C), positions=(0, 9)),
        "keys": Intervention("zero", tap="blocks.0.attn.hook_pattern", columns=(0, 4), heads=(1,)),
    }
    if spec.moe is None:
        kinds["neurons"] = Intervention("knock_out", layer=1, neurons=(0, 5, 90))
    else:
        k = spec.moe.n_experts_per_token
        kinds["experts"] = Intervention("knock_out", layer=0, experts=(1,))
        kinds["expert output"] = Intervention("zero", tap="blocks.1.mlp.experts.2.hook_out", since=1)
        kinds["expert neurons"] = Intervention("zero", tap="blocks.0.mlp.experts.0.hook_post", columns=(4,))
        kinds["force"] = Intervention("force_experts", layer=0, experts=tuple(range(k))[::-1], positions=(0, 3, 17))
        kinds["weigh"] = Intervention("weigh_experts", layer=1, experts=(0, 3), factors=(0.0, 2.5))
        kinds["bias"] = Intervention("bias_experts", layer=1, experts=(2,), factors=(3.0,), since=1)
    return {name: (change,) for name, change in kinds.items()} | {"all": tuple(kinds.values())}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_kind_has_the_bits_of_the_reference_and_leaves_the_others_theirs(case: tuple[str, str]) -> None:
    plain = [law(case, prompt, ()) for prompt in OTHERS]
    for name, changes in some(case).items():
        e = engine(case, threads=2, step_tokens=7)  # chunks that cut prompts anywhere
        for i in range(2):  # the second time, full pages come from the prefix cache
            found = logits(e, [(PROMPT, ()), (PROMPT, changes), (OTHERS[1], ()), (OTHERS[2], ())])
            assert found[1] == law(case, PROMPT, changes), (name, i)
            assert found[1] != plain[0], f"{name} changed nothing"
            assert [found[0], *found[2:]] == plain, (name, i)


@pytest.mark.parametrize("case", CASES[::2], ids="-".join)
def test_a_replacement_of_every_tap_has_the_bits_of_the_reference(case: tuple[str, str]) -> None:
    spec = weights(*case).spec
    rng = np.random.default_rng(1)
    for tap in taps(spec):
        if tap.name.endswith("hook_expert_indices"):
            continue
        shape = (len(PROMPT), *row_shape(spec, tap.name))
        shape = (*shape[:-1], len(PROMPT)) if is_attention(tap.name) else shape
        values = Values.of(np.abs(rng.standard_normal(shape).astype(np.float32)) + np.float32(0.1))
        change = Intervention("patch", tap=tap.name, values=values, positions=tuple(range(len(PROMPT))))
        found = logits(engine(case, step_tokens=11), [(PROMPT, ()), (PROMPT, (change,))])
        assert found[1] == law(case, PROMPT, (change,)), tap.name


def test_results_of_heads_are_replaced_one_by_one() -> None:
    case = ("llama-3.1", "F32")
    known, seen = weights(*case), {}
    H, C = known.spec.n_heads, known.spec.dim
    reference = Reference(known.spec, known.law())
    new = np.random.default_rng(3).standard_normal((len(PROMPT), H, C)).astype(np.float32)

    def attn_out(*changes: Intervention) -> Any:
        on_tap = reference_taps(changes, see=seen.__setitem__, head_result=reference.head_result)
        reference.forward(PROMPT, Cache(known.spec), on_tap)
        return seen["blocks.1.hook_attn_out"]

    tap = "blocks.1.attn.hook_result"
    plain = attn_out()
    z = seen["blocks.1.attn.hook_z"]
    each = np.stack([reference.head_result(1, z, head) for head in range(H)], axis=1)
    assert np.allclose(each.sum(axis=1), plain, atol=1e-5)
    assert np.allclose(attn_out(Intervention("zero", tap=tap)), 0, atol=1e-5)
    everywhere = Intervention("patch", tap=tap, values=Values.of(new), positions=tuple(range(len(PROMPT))))
    assert np.allclose(attn_out(everywhere), new.sum(axis=1), atol=1e-4)
    same = Intervention("patch", tap=tap, values=Values.of(each), positions=tuple(range(len(PROMPT))))
    assert (attn_out(same) == plain).all(), "what is replaced by itself changes no bit"
    silent = attn_out(Intervention("zero", tap=tap, heads=(2,)))
    assert np.allclose(silent, attn_out(Intervention("knock_out", layer=1, heads=(2,))), atol=1e-5)
    with pytest.raises(RequestError, match="has no blocks.9.attn.hook_result"):
        Intervention("zero", tap="blocks.9.attn.hook_result").check(known.spec)
    with pytest.raises(RequestError, match=r"values have shape \[3\]"):
        Intervention("replace", tap=tap, values=Values.of([1, 2, 3])).check(known.spec)
    with pytest.raises(RequestError, match="give it"):
        reference_taps((Intervention("zero", tap=tap),))


def test_requests_share_pages_only_if_their_interventions_are_equal() -> None:
    case = CASES[0]
    changes = some(case)
    e = engine(case)
    prompt = (PROMPT * 3)[:40]

    def cached(interventions: tuple[Intervention, ...]) -> int:
        with e.answer(prompt, SamplingParams(max_tokens=1), interventions=interventions) as answer:
            list(answer)
            return answer.cached

    assert cached(()) == 0
    assert cached(()) == 32
    assert cached(changes["steer"]) == 0
    assert cached(changes["steer"]) == 32
    assert cached(changes["zero"]) == 0
    assert cached(from_document(to_document(changes["zero"]))) == 32


def test_a_document_keeps_everything_and_its_digest(tmp_path: Path) -> None:
    for case in CASES:
        for changes in some(case).values():
            again = from_document(to_document(changes))
            assert again == changes
            assert digest(again) == digest(changes)
            assert {hash(change) for change in again} == {hash(change) for change in changes}
    digests = {digest(changes) for changes in some(CASES[2]).values()}
    assert len(digests) == len(some(CASES[2]))
    assert digest(tuple(reversed(some(CASES[2])["all"]))) not in digests, "the order counts"


def test_values_come_from_a_safetensors_file_of_the_named_digest(tmp_path: Path) -> None:
    import hashlib

    from safetensors.numpy import save_file

    save_file({"mean": np.arange(64, dtype=np.float32)}, tmp_path / "means.safetensors")
    sha = hashlib.sha256((tmp_path / "means.safetensors").read_bytes()).hexdigest()
    entry: dict[str, Any] = {"kind": "mean", "tap": "hook_embed"}
    entry["values"] = {"file": "means.safetensors", "tensor": "mean", "sha256": sha}
    change = Intervention.from_json(entry, tmp_path)
    assert change.values is not None
    assert change.values.array()[63] == 63
    assert change.values.source == FileSource("means.safetensors", "mean", sha)
    assert change.to_json() == entry
    for wrong, said in [
        ({"sha256": "0" * 64}, "the document wants"),
        ({"tensor": "other"}, "has no tensor"),
        ({"file": "../means.safetensors"}, "not in"),
    ]:
        with pytest.raises(RequestError, match=said):
            Intervention.from_json({**entry, "values": {**entry["values"], **wrong}}, tmp_path)
    with pytest.raises(RequestError, match="files are not read here"):
        Intervention.from_json(entry)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "an object with a kind"),
        ({"kind": "erase"}, "no intervention is called 'erase'"),
        ({"kind": "zero", "tap": "hook_embed", "head": [1]}, "no 'head'"),
        ({"kind": "zero"}, "zero wants tap"),
        ({"kind": "zero", "tap": 3}, "tap is 3"),
        ({"kind": "zero", "tap": "hook_embed", "coefficient": 2.0}, "takes no coefficient"),
        ({"kind": "zero", "tap": "hook_embed", "positions": [3, 1]}, "ascending"),
        ({"kind": "zero", "tap": "hook_embed", "positions": [-1]}, "whole numbers from 0"),
        ({"kind": "zero", "tap": "hook_embed", "positions": [True]}, "whole numbers from 0"),
        ({"kind": "zero", "tap": "hook_embed", "positions": "all"}, "allowed: a list"),
        ({"kind": "mean", "tap": "hook_embed", "values": [[1], [2, 3]]}, "no array of numbers"),
        ({"kind": "mean", "tap": "hook_embed", "values": "x"}, "values are 'x'"),
        ({"kind": "mean", "tap": "hook_embed", "values": {"shape": [2], "float32": "AAAA"}}, "3 bytes"),
        ({"kind": "mean", "tap": "hook_embed", "values": {"shape": [-1], "float32": "AAAA"}}, "whole numbers"),
        ({"kind": "mean", "tap": "hook_embed", "values": [float("nan")]}, "NaN"),
        ({"kind": "steer", "tap": "hook_embed", "values": [1.0], "coefficient": float("inf")}, "finite"),
        ({"kind": "knock_out", "layer": 0}, "exactly one of"),
        ({"kind": "weigh_experts", "layer": 0, "experts": [0, 1], "factors": [1.0]}, "1 factors for 2 experts"),
    ],
)
def test_a_document_that_is_wrong_is_refused(document: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Intervention.from_json(document).check(weights(*CASES[2]).spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Intervention("zero", tap="blocks.2.hook_resid_pre"), "has no blocks.2"),
        (Intervention("knock_out", layer=0, heads=(4,)), "0 to 3"),
        (Intervention("knock_out", layer=0, experts=tuple(range(7))), "leaves 1 experts"),
        (Intervention("knock_out", layer=0, neurons=(1,)), "has no blocks.0.mlp.hook_post"),
        (Intervention("force_experts", layer=0, experts=(1,)), "uses 2 for each token"),
        (Intervention("force_experts", layer=0, experts=(1, 1)), "twice"),
        (Intervention("zero", tap="blocks.0.mlp.hook_expert_indices"), "use force_experts"),
        (Intervention("replace", tap="hook_embed", values=Values.of([1.0, 2.0])), r"allowed: \[64\]"),
        (Intervention("patch", tap="hook_embed", values=Values.of(np.ones((1, 64))), positions=(0, 1)), r"\[2, 64\]"),
        (Intervention("zero", tap="hook_embed", heads=(0,)), "has no heads"),
        (Intervention("zero", tap="hook_embed", columns=(64,)), "0 to 63"),
    ],
)
def test_an_intervention_that_does_not_fit_the_model_is_refused_before_it_runs(change: Intervention, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        engine(CASES[2]).add(PROMPT, SamplingParams(), interventions=[change])


def test_a_frozen_pattern_cannot_look_ahead() -> None:
    case = CASES[0]
    spec = weights(*case).spec
    ahead = np.ones((1, spec.n_heads, len(PROMPT)), np.float32)
    freeze = (Intervention("freeze_attention", layer=0, values=Values.of(ahead), positions=(4,)),)
    whole = logits(engine(case), [(PROMPT, freeze)])[0]
    alone = logits(engine(case, step_tokens=1), [(PROMPT, freeze)])[0]
    cut = logits(engine(case), [(PROMPT[:5], freeze)])[0]
    assert whole == alone
    assert whole.startswith(cut), "what comes behind a token changed it"
