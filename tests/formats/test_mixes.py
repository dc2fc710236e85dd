"""Which type a tensor gets is what llama.cpp's own rules say (`mixes.json`, written by `golden_mixes.py`)."""

from __future__ import annotations

import json

import pytest

from tests.formats.golden_mixes import MODELS, PATH, by_part
from vitral.errors import FormatError
from vitral.formats.mapping import gguf_name
from vitral.formats.mixes import FILE_TYPES, file_type, plan_types
from vitral.formats.quants import TYPES
from vitral.model.names import tensor_shapes
from vitral.model.presets import preset

GOLDEN = json.loads(PATH.read_text())


def ours(label: str, name: str, importance: bool) -> dict[str, str]:
    """Our plan in the words of the golden file; llama.cpp's one other choice put in."""
    spec = MODELS[label]
    shapes = tensor_shapes(spec)
    types = {}
    for tensor, planned in plan_types(spec, name, importance=importance).items():
        if len(shapes[tensor]) == 1 or tensor.endswith(".router.weight"):
            assert planned.type == "F32"
            continue
        theirs_has_q4_0 = planned.type == "IQ4_NL" and planned.fallback_from in ("Q2_K", "Q3_K")
        types[gguf_name(tensor)] = "Q4_0" if theirs_has_q4_0 else planned.type
    return by_part(types, spec.n_layers)


@pytest.mark.parametrize("label", GOLDEN)
def test_every_file_type_is_llama_cpps(label: str) -> None:
    assert len(GOLDEN[label]) >= len(FILE_TYPES) - 3
    for name in FILE_TYPES:
        if FILE_TYPES[name].type in ("F32", "F16", "BF16"):
            continue
        for importance in (False, True):
            key = f"{name}, importance" if importance and f"{name}, importance" in GOLDEN[label] else name
            assert ours(label, name, importance) == GOLDEN[label][key], (name, importance)


def test_the_golden_file_tells_the_rules_apart() -> None:
    plans = {json.dumps(plan, sort_keys=True) for model in GOLDEN.values() for plan in model.values()}
    assert len(plans) > 120
    assert any("importance" in name for name in GOLDEN["32 layers"])


@pytest.mark.parametrize("name", FILE_TYPES)
def test_pure_gives_every_matrix_the_one_type(name: str) -> None:
    spec = MODELS["32 layers, 8 experts"]
    kinds = {p.type for t, p in plan_types(spec, name, pure=True).items() if "ln" not in t and "router" not in t}
    assert kinds == {FILE_TYPES[name].type}


def test_names_are_found_in_any_case_and_unknown_ones_name_the_nearest() -> None:
    assert file_type("q4_k_m") is FILE_TYPES["Q4_K_M"]
    assert [file_type(name).name for name in ("Q3_K", "Q4_K", "q5_k")] == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
    for wrong, near in (("Q4_KM", "Q4_K_M"), ("Q9", "Q8_0"), ("IQ2_XXS", "IQ4_XS"), ("", "Q4_K_M")):
        with pytest.raises(FormatError, match=near):
            file_type(wrong)


def test_file_type_numbers_are_the_gguf_packages() -> None:
    gguf = pytest.importorskip("gguf")
    for kind in FILE_TYPES.values():
        theirs = "ALL_F32" if kind.name == "F32" else f"MOSTLY_{kind.name}"
        assert gguf.LlamaFileType[theirs].value == kind.number


def test_every_quantised_type_is_in_reach_and_a_short_row_is_said_to_fall_back() -> None:
    assert {kind.type for kind in FILE_TYPES.values()} == set(TYPES)
    planned = plan_types(preset("smollm2-135m"), "Q6_K")
    assert planned["blocks.0.attn.q.weight"].fallback_from == "Q6_K"
    assert planned["blocks.0.attn.q.weight"].type == "Q8_0"
    assert plan_types(MODELS["3 layers, rows of 40"], "Q4_0")["blocks.0.attn.q.weight"].type == "F16"
