"""The native model computes what the reference computes: every value, bit for bit.

A failure names the first tap that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.parity.engines import native_model, run
from tests.parity.families import FAMILIES, random_weights
from vitral.formats import quants
from vitral.formats.quantize import encode
from vitral.model.law import F32, KV_TYPES, KvType, Quantised
from vitral.model.reference import Cache, Reference
from vitral.model.spec import ModelSpec
from vitral.model.taps import taps
from vitral.native import NativeModel, available

Any = NDArray[np.generic]
Raw = dict[str, tuple[str, NDArray[np.uint8]]]

IDS = np.random.default_rng(11).integers(0, 160, 37).tolist()
TYPES = [name for name, info in quants.TYPES.items() if info.block <= 32]
K_TYPES = [name for name in quants.TYPES if name not in TYPES]
SOME = ["llama-3.1", "mistral-window", "mistral-nemo", "mixtral-window", "mixtral-dense-first"]


def wide(spec: ModelSpec) -> ModelSpec:
    """The same family with every row a multiple of 256, which K-quants want."""
    return replace(spec, dim=256, n_heads=8, n_kv_heads=2, head_dim=32, hidden_dim=256)


@cache
def model(family: str, type_: str) -> tuple[ModelSpec, Raw, dict[str, Quantised | F32]]:
    spec = wide(FAMILIES[family]) if type_ in K_TYPES else FAMILIES[family]
    raw: Raw = {}
    for name, values in random_weights(spec).items():
        kind = "F32" if values.ndim == 1 or name.endswith("router.weight") else type_
        raw[name] = (kind, encode(kind, np.atleast_2d(values)))  # type: ignore[arg-type]
    law = {name: quants.decode(kind, rows) for name, (kind, rows) in raw.items()}
    vectors = {name for name in law if ".ln" in name or name.startswith("ln_")}
    return spec, raw, {name: law[name][0] if name in vectors else law[name] for name in law}  # type: ignore[index]


def reference_values(family: str, type_: str, kv_type: str) -> dict[str, Any]:
    spec, _, weights = model(family, type_)
    seen: dict[str, Any] = {}

    def see(name: str, value: Any) -> None:
        seen[name] = value.copy()

    Reference(spec, weights, 64).forward(IDS, Cache(spec, kv_type), see)  # type: ignore[arg-type]
    return seen


def native_values(native: NativeModel, spec: ModelSpec, kv_type: str, cuts: list[int]) -> list[tuple[str, int, Any]]:
    """(name, position of the step's first token, value) in the order seen."""
    names = [tap.name for tap in taps(spec)]
    cache = native.new_cache(4, 32, kv_type)
    table = np.array([[2, 0]], np.int32)
    seen: list[tuple[str, int, Any]] = []
    start = 0
    for n in cuts:
        here = start

        def see(name: str, value: Any, sequence: int, here: int = here) -> None:
            assert sequence == (0 if name.endswith(("attn_scores", "pattern")) else -1)
            seen.append((name, here, value.copy()))

        steps = [np.array(x, np.int32) for x in (IDS[start : start + n], range(start, start + n), [0] * n, range(n))]
        native.forward(cache, *steps[:3], table, steps[3], names, see)
        start += n
    return seen


def first_difference(expected: Mapping[str, Any], found: list[tuple[str, int, Any]]) -> str | None:
    """The first tap whose bits differ, or that was not seen; rows of experts are counted one after another."""
    rows_done: dict[str, int] = {}
    for name, start, value in found:
        if name not in expected:
            return f"{name} is unknown to the reference"
        whole = expected[name]
        if whole.ndim == 3 and name.endswith(("attn_scores", "pattern")):  # (H, T, S)
            part = whole[:, start : start + value.shape[1], : value.shape[2]]
        else:
            done = rows_done.get(name, 0)
            part = whole[done : done + len(value)]
            rows_done[name] = done + len(value)
        if value.shape != part.shape or value.dtype != part.dtype or value.tobytes() != part.tobytes():
            return f"{name} at position {start}"
    missing = set(expected) - {name for name, _, _ in found}
    return f"{sorted(missing)[0]} was not seen" if missing else None


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize(
    ("family", "kv_type"), [*product(FAMILIES, ["f16", "bf16"]), *((family, "q8_0") for family in SOME)]
)
def test_every_value_has_the_bits_of_the_reference(family: str, kv_type: str, isa: str) -> None:
    spec, raw, _ = model(family, "Q4_1")
    expected = reference_values(family, "Q4_1", kv_type)
    for threads, cuts in [(1, [37]), (2, [1, 16, 3, 17])]:
        native = native_model(spec, raw, isa, threads)
        assert first_difference(expected, native_values(native, spec, kv_type, cuts)) is None


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("type_", [*TYPES, *K_TYPES])
@pytest.mark.parametrize("family", ["llama-3.2-tied", "mixtral-window"])
def test_every_weight_type_has_the_bits_of_the_reference(family: str, type_: str, isa: str) -> None:
    spec, raw, _ = model(family, type_)
    expected = reference_values(family, type_, "f32")
    native = native_model(spec, raw, isa, 2)
    assert first_difference(expected, native_values(native, spec, "f32", [20, 17])) is None


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("family", SOME)
def test_logits_do_not_depend_on_cut_mixture_threads_or_page(family: str, kv_type: str, isa: str) -> None:
    spec, raw, weights = model(family, "Q4_1")
    sequences = [IDS, IDS[5:9], IDS[3:33], IDS[:1], IDS[10:27]]
    expected = [Reference(spec, weights, 64).forward(s, Cache(spec, kv_type)) for s in sequences]  # type: ignore[arg-type]
    for threads in (1, 2, 3):
        native = native_model(spec, raw, isa, threads)
        for cuts, page_size in [([64], 16), ([1], 16), ([7, 1, 2], 32), ([1, 13, 5, 1], 48)]:
            found = run(native, sequences, cuts, kv_type, page_size * 2 if kv_type in ("bf16", "q8_0") else page_size)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.tobytes() == theirs.tobytes(), (threads, cuts, page_size)


@pytest.mark.parametrize(
    ("kv_type", "window", "heads", "n"),
    [
        *product(["f16", "bf16"], [None, 300], [(4, 4), (6, 2), (8, 1)], [600]),
        ("q8_0", None, (8, 1), 150),
        ("q8_0", 300, (6, 2), 600),
    ],
)
def test_long_sequences_keep_the_bits_over_splits_of_keys(
    kv_type: str, window: int | None, heads: tuple[int, int], n: int
) -> None:
    spec = replace(
        FAMILIES["llama-2"],
        n_layers=1,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=16 * heads[0] // heads[1],  # 16, 48, 128: with tiles and without
        sliding_window=window,
        max_context=1024,
    )
    rng = np.random.default_rng(3)
    raw: Raw = {name: ("F32", np.atleast_2d(w).view(np.uint8)) for name, w in random_weights(spec).items()}
    ids = rng.integers(0, spec.vocab_size, n).tolist()
    expected = Reference(spec, random_weights(spec)).forward(ids, Cache(spec, kv_type))  # type: ignore[arg-type]
    for isa in available():
        for threads in (1, 2, 3):
            native = native_model(spec, raw, isa, threads, context=1024)
            (whole,) = run(native, [ids], [512, 1, 1, 120, 1], kv_type, 64)
            assert whole.tobytes() == expected.tobytes(), (isa, threads)


def altered(value: Any) -> Any:
    """Another value of the same shape: for expert indices the neighbours, else squares with their signs."""
    return (value ^ 1 if value.dtype == np.int32 else value * np.abs(value)).astype(value.dtype)


@pytest.mark.parametrize("family", ["llama-3.1", "mixtral", "mixtral-dense-first"])
def test_a_replaced_value_has_the_effect_that_it_has_in_the_reference(family: str) -> None:
    spec, raw, weights = model(family, "Q8_0")
    native = native_model(spec, raw, available()[-1], 2)
    ids = IDS[:6]
    places = [np.array(x, np.int32) for x in (ids, range(6), [0] * 6)]
    plain = native.forward(native.new_cache(1, 16, "f32"), *places, np.zeros((1, 1), np.int32), places[1])
    for tap in taps(spec):
        expected = Reference(spec, weights).forward(
            ids, on_tap=lambda name, value, tap=tap: altered(value) if name == tap.name else None
        )

        def change(name: str, value: Any, sequence: int) -> None:
            value[...] = altered(value)

        cache = native.new_cache(1, 16, "f32")
        found = native.forward(cache, *places, np.zeros((1, 1), np.int32), places[1], [tap.name], change)
        assert found.tobytes() == expected.tobytes(), tap.name
        seen = "experts." not in tap.name
        assert not seen or found.tobytes() != plain.tobytes(), f"{tap.name} changed nothing"


@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("kv_type", ["bf16", "q8_0"])
def test_what_the_cache_cannot_hold_stays_where_it_is(kv_type: KvType, isa: str) -> None:
    """Subnormal numbers count as zero; who sees a value that is not finite gets NaN, who does not is untouched."""
    spec, raw, weights = model("mistral-nemo", "Q8_0")  # heads of 32, so that tiles are at work
    rng = np.random.default_rng(7)
    size = np.float32(2.0) ** rng.integers(-149, -30, (len(IDS), spec.n_kv_heads, spec.head_dim)).astype(np.float32)
    tiny = (size * rng.standard_normal(size.shape)).astype(np.float32)
    lost = tiny.copy()
    lost[20, 1, 3], lost[25, 0, 0], lost[30, 1, 7] = np.inf, np.nan, 3.4e38

    def forward(name: str, new: Any, taken: int) -> tuple[Any, Any]:
        def see(tap: str, value: Any) -> Any:
            return new[:taken] if tap == name else None

        def change(tap: str, value: Any, sequence: int) -> None:
            value[...] = new[:taken]

        places = [np.array(x, np.int32) for x in (IDS[:taken], range(taken), [0] * taken, range(taken))]
        native = native_model(spec, raw, isa, 2)
        cache = native.new_cache(2, 32, kv_type)
        found = native.forward(cache, *places[:3], np.array([[1, 0]], np.int32), places[3], [name], change)
        return Reference(spec, weights, 64).forward(IDS[:taken], Cache(spec, kv_type), see), found

    for name in ("blocks.0.attn.hook_v", "blocks.0.attn.hook_rot_k"):
        expected, found = forward(name, tiny, len(IDS))
        assert found.tobytes() == expected.tobytes(), name
    expected, found = forward("blocks.0.attn.hook_v", lost, len(IDS))
    before = forward("blocks.0.attn.hook_v", lost, 20)[1]
    assert np.isnan(found[20:]).all() and np.isnan(expected[20:]).all()
    assert found[:20].tobytes() == expected[:20].tobytes() == before.tobytes()


@pytest.mark.parametrize("isa", available())
def test_what_rounds_up_to_the_smallest_normal_number_is_kept(isa: str) -> None:
    """2^-126 less some 2^-158 is 2^-126, though ARM's own mode for subnormal numbers makes it zero before it rounds."""
    spec, raw, weights = model("mistral-nemo", "Q8_0")
    n, least, small = 4, np.float32(2.0**-126), -np.float32(2.0**-115)
    keys = np.zeros((n, spec.n_kv_heads, spec.head_dim), np.float32)
    values = np.full(keys.shape, least)
    keys[1:], values[1:] = -30 / np.sqrt(spec.head_dim), small  # weights: 1, and exp(-30) for the others
    new = {"rot_q": np.ones((n, spec.n_heads, spec.head_dim), np.float32), "rot_k": keys, "v": values}
    seen: list[Any] = []

    def put(name: str, value: Any) -> Any:
        kind = name.removeprefix("blocks.0.attn.hook_")
        if kind == "z":
            seen.append(value.copy())
        return new.get(kind)

    def change(name: str, value: Any, sequence: int) -> None:
        value[...] = value if (other := put(name, value)) is None else other

    Reference(spec, weights, 64).forward(IDS[:n], Cache(spec, "bf16"), put)
    native = native_model(spec, raw, isa, 2)
    places = [np.array(x, np.int32) for x in (IDS[:n], range(n), [0] * n)]
    names = [f"blocks.0.attn.hook_{kind}" for kind in (*new, "z")]
    native.forward(native.new_cache(1, 32, "bf16"), *places, np.zeros((1, 1), np.int32), places[1], names, change)
    expected, found = seen
    assert (expected == least).all()
    assert found.tobytes() == expected.tobytes()
