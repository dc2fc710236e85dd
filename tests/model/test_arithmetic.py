"""The closed forms agree with the list of tensors and with published counts."""

from __future__ import annotations

import math

import pytest

from tests.parity.families import FAMILIES
from vitral.errors import SpecError
from vitral.model.arithmetic import flops_per_token, kv_bytes, parameters, weight_bytes
from vitral.model.names import tensor_shapes
from vitral.model.presets import preset, preset_names, preset_source

PUBLISHED = {  # "number of parameters" in the safetensors headers on the Hugging Face Hub
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "smollm2-135m": 134_515_008,
    "tinyllama-1.1b": 1_100_048_384,
}


@pytest.mark.parametrize("name", preset_names())
def test_closed_form_counts_every_tensor(name: str) -> None:
    spec = preset(name)
    assert parameters(spec).total == sum(math.prod(shape) for shape in tensor_shapes(spec).values())
    assert preset_source(name)


def test_dense_first_layers_have_neither_router_nor_experts() -> None:
    spec = FAMILIES["mixtral-dense-first"]
    count, network = parameters(spec), 3 * spec.dim * spec.hidden_dim
    assert count.total == sum(math.prod(shape) for shape in tensor_shapes(spec).values())
    assert (count.feed_forward, count.feed_forward_active) == ((1 + 2 * 4) * network, (1 + 2 * 2) * network)
    assert count.router == 2 * 4 * spec.dim


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_count(name: str) -> None:
    assert parameters(preset(name)).total == PUBLISHED[name]


def test_mixtral_uses_two_of_eight_experts_and_everything_else() -> None:
    count = parameters(preset("mixtral-8x7b"))
    assert count.active == 12_879_925_248
    assert count.total - count.active == 6 * 32 * 3 * 4096 * 14336
    dense = parameters(preset("mistral-7b-v0.2"))
    assert (dense.attention, dense.embedding) == (count.attention, count.embedding)
    assert dense.feed_forward * 8 == count.feed_forward
    assert count.router == 32 * 8 * 4096


def test_a_window_bounds_the_work_of_attention() -> None:
    spec = preset("mistral-7b-v0.1")
    assert flops_per_token(spec, 4096) == flops_per_token(spec, 30_000)
    assert flops_per_token(spec, 4095) < flops_per_token(spec, 4096)


def test_bytes_follow_from_counts() -> None:
    spec = preset("llama-3.2-1b")
    count = parameters(spec)
    assert weight_bytes(spec, 16) == 2 * (count.total - count.norms) + 4 * count.norms
    assert kv_bytes(spec, 100) == 100 * 2 * 16 * 8 * 64 * 2


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="mixtral-8x7b"):
        preset("mixtral-7x8b")
