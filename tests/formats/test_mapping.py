"""Published configurations give the published architectures, the same in every dialect, and nothing unknown passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.parity.families import FAMILIES
from vitral.errors import SpecError, UnsupportedArchitecture
from vitral.formats.dialect_gguf import gguf_metadata, rope_factors, spec_from_gguf
from vitral.formats.dialect_hf import hf_config, spec_from_hf
from vitral.formats.dialect_params import spec_from_meta, spec_from_mistral
from vitral.formats.mapping import canonical_from_gguf, canonical_from_hf, gguf_name, hf_name
from vitral.model.names import tensor_shapes
from vitral.model.presets import preset, preset_names
from vitral.model.spec import ModelSpec, RopeSpec

# As the files on the Hugging Face Hub have them, shortened by nothing but tokens' names.
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "use_cache": True}
LLAMA |= {"initializer_range": 0.02, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
LLAMA |= {"transformers_version": "4.43.0.dev0", "tie_word_embeddings": False, "rms_norm_eps": 1e-05}
SCALED = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 8192}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "use_cache": True}
MISTRAL |= {"initializer_range": 0.02, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
MISTRAL |= {"rms_norm_eps": 1e-05, "tie_word_embeddings": False, "transformers_version": "4.34.0.dev0"}


def sizes(hidden: int, layers: int, heads: int, kv: int | None, inner: int, vocab: int, context: int) -> dict[str, Any]:
    found = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    found |= {"intermediate_size": inner, "vocab_size": vocab, "max_position_embeddings": context}
    return found if kv is None else found | {"num_key_value_heads": kv}


CONFIGS: dict[str, dict[str, Any]] = {
    "llama-1-7b": LLAMA
    | sizes(4096, 32, 32, None, 11008, 32000, 2048)
    | {"rms_norm_eps": 1e-06, "pad_token_id": 0, "max_sequence_length": 2048},
    "llama-2-7b": LLAMA
    | sizes(4096, 32, 32, 32, 11008, 32000, 4096)
    | {"pretraining_tp": 1, "rope_scaling": None, "_name_or_path": "meta-llama/Llama-2-7b-hf"},
    "llama-2-70b": LLAMA | sizes(8192, 80, 64, 8, 28672, 32000, 4096) | {"pretraining_tp": 1, "rope_scaling": None},
    "llama-3-8b": LLAMA
    | sizes(4096, 32, 32, 8, 14336, 128256, 8192)
    | {"attention_bias": False, "attention_dropout": 0.0, "rope_theta": 500000.0, "rope_scaling": None},
    "llama-3.1-8b": LLAMA
    | sizes(4096, 32, 32, 8, 14336, 128256, 131072)
    | {"attention_bias": False, "mlp_bias": False, "rope_theta": 500000.0, "rope_scaling": SCALED | {"factor": 8.0}}
    | {"eos_token_id": [128001, 128008, 128009]},
    "llama-3.2-1b": LLAMA
    | sizes(2048, 16, 32, 8, 8192, 128256, 131072)
    | {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": SCALED | {"factor": 32.0}, "tie_word_embeddings": True},
    "llama-3.3-70b": LLAMA
    | sizes(8192, 80, 64, 8, 28672, 128256, 131072)
    | {"mlp_bias": False, "rope_parameters": SCALED | {"factor": 8.0, "rope_theta": 500000.0}, "dtype": "bfloat16"},
    "mistral-7b-v0.1": MISTRAL
    | sizes(4096, 32, 32, 8, 14336, 32000, 32768)
    | {"sliding_window": 4096, "rope_theta": 10000.0},
    "mistral-7b-v0.3": MISTRAL
    | sizes(4096, 32, 32, 8, 14336, 32768, 32768)
    | {"sliding_window": None, "rope_theta": 1000000.0, "attention_dropout": 0.0},
    "mistral-nemo-12b": MISTRAL
    | sizes(5120, 40, 32, 8, 14336, 131072, 131072)
    | {"head_dim": 128, "sliding_window": None, "rope_theta": 1000000.0},
    "mixtral-8x7b": MISTRAL
    | sizes(4096, 32, 32, 8, 14336, 32000, 32768)
    | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8}
    | {"num_experts_per_tok": 2, "output_router_logits": False, "router_aux_loss_coef": 0.02}
    | {"rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0},
    "smollm2-135m": LLAMA
    | sizes(576, 30, 9, 3, 1536, 49152, 8192)
    | {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000}
    | {"tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "tinyllama-1.1b": LLAMA
    | sizes(2048, 22, 32, 4, 5632, 32000, 2048)
    | {"pretraining_tp": 1, "rope_scaling": None, "attention_bias": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_gives_the_published_architecture(name: str) -> None:
    assert spec_from_hf(CONFIGS[name]) == replace(preset(name), max_context=CONFIGS[name]["max_position_embeddings"])


META: dict[str, dict[str, Any]] = {
    "llama-1-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
    "llama-1-65b": {
        "dim": 8192,
        "multiple_of": 256,
        "n_heads": 64,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "llama-2-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1},
    "llama-2-70b": {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
    | {"n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1},
    "llama-3-8b": {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0},
    "llama-3.1-8b": {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}
    | {"use_scaled_rope": True},
    "llama-3.2-1b": {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 256, "ffn_dim_multiplier": 1.5, "norm_eps": 1e-05, "rope_theta": 500000.0}
    | {"use_scaled_rope": True},
    "llama-3.2-3b": {"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-05, "rope_theta": 500000.0}
    | {"use_scaled_rope": True},
}


@pytest.mark.parametrize("name", META)
def test_metas_params_give_the_same_architecture_as_the_preset(name: str) -> None:
    spec = preset(name)
    assert spec_from_meta(META[name], spec.vocab_size, spec.hidden_dim, spec.tied_embeddings) == spec
    with pytest.raises(SpecError, match=f"hidden_dim of {spec.hidden_dim}; the tensors have 64"):
        spec_from_meta(META[name], spec.vocab_size, 64, spec.tied_embeddings)


SEVEN = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8}
SEVEN |= {"norm_eps": 1e-05, "vocab_size": 32000}
MISTRALS: dict[str, dict[str, Any]] = {
    "mistral-7b-v0.1": SEVEN | {"sliding_window": 4096},
    "mistral-7b-v0.2": SEVEN | {"rope_theta": 1000000.0},
    "mistral-7b-v0.3": SEVEN | {"rope_theta": 1000000.0, "vocab_size": 32768},
    "mistral-nemo-12b": SEVEN | {"dim": 5120, "n_layers": 40, "rope_theta": 1000000.0, "vocab_size": 131072},
    "mixtral-8x7b": SEVEN | {"moe": {"num_experts_per_tok": 2, "num_experts": 8}},
    "mixtral-8x22b": {"dim": 6144, "n_layers": 56, "head_dim": 128, "hidden_dim": 16384, "n_heads": 48}
    | {"n_kv_heads": 8, "rope_theta": 1000000, "norm_eps": 1e-05, "vocab_size": 32768, "max_seq_len": 65536}
    | {"moe": {"num_experts_per_tok": 2, "num_experts": 8}, "max_batch_size": 0},
}


@pytest.mark.parametrize("name", MISTRALS)
def test_mistrals_params_give_the_same_architecture_as_the_preset(name: str) -> None:
    found = spec_from_mistral(MISTRALS[name], tied=False)
    assert replace(found, max_context=1) == replace(preset(name), max_context=1, vocab_size=found.vocab_size)


@pytest.mark.parametrize("name", preset_names())
def test_what_we_write_is_what_we_read(name: str) -> None:
    spec = preset(name)
    assert spec_from_hf(hf_config(spec, "bfloat16")) == spec
    assert_gguf_keeps(spec)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llama-dynamic"])
def test_tiny_families_survive_gguf(family: str) -> None:
    assert_gguf_keeps(FAMILIES[family])


def assert_gguf_keeps(spec: ModelSpec) -> None:
    factors = rope_factors(spec)
    noted = None if factors is None else tuple(factors.tolist())
    found = spec_from_gguf(gguf_metadata(spec), spec.vocab_size, spec.tied_embeddings, noted)
    assert replace(found, rope=spec.rope) == spec
    if spec.rope.attention_factor is None:
        assert found.rope == spec.rope
    else:
        assert found.rope.attention_factor == pytest.approx(spec.rope.attention_factor, rel=1e-12)


def test_gguf_files_of_llama_3_by_others_get_their_scaling_back() -> None:
    spec = preset("llama-3.1-8b")
    metadata = {key: value for key, value in gguf_metadata(spec).items() if not key.startswith("vitral.")}
    factors = rope_factors(spec)
    assert factors is not None
    found = spec_from_gguf(metadata, spec.vocab_size, False, tuple(factors.tolist()))
    assert found.rope == spec.rope
    other = factors.copy()
    other[40] *= np.float32(1.001)
    found = spec_from_gguf(metadata, spec.vocab_size, False, tuple(other.tolist()))
    assert found.rope == RopeSpec(500_000.0, "factors", factors=tuple(other.tolist()))


def test_names_are_the_same_there_and_back() -> None:
    for family in ("llama-2", "mixtral"):
        for name in tensor_shapes(FAMILIES[family]):
            assert canonical_from_hf(hf_name(name)) == name
            back = canonical_from_gguf(gguf_name(name))
            assert back is not None
            assert back == name or ("*" in back and name.startswith(back.split("*")[0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_head": 8}, "field 'num_key_value_head' .* is unknown; the nearest known one is 'num_key_value_heads'"),
        ({"rope_theta": "x"}, "rope_theta is 'x'; allowed: a number"),
        ({"hidden_size": 4096.5}, "hidden_size is 4096.5; allowed: a whole number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_bias": True}, "attention_bias is True; Vitral runs False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; Vitral runs 'silu' only"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'; allowed: default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "fator": 1}}, "'fator' .* nearest known one is 'factor'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised with 'gptq'; use the original or a GGUF"),
        ({"num_attention_heads": 33}, "not a multiple"),
        ({"head_dim": 127}, "odd"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"qk_norm": [1] * 100_000}, r"'qk_norm' \(value a list of 100000\) is unknown"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_understood_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_from_hf(CONFIGS["llama-2-7b"] | change)


def test_mistrals_alternating_windows_are_refused_clearly() -> None:
    with pytest.raises(SpecError, match="sliding_window is a list .* layers that are all alike"):
        spec_from_mistral(SEVEN | {"sliding_window": [None, 32768]}, tied=False)
    with pytest.raises(SpecError, match="vision_encoder is a dict of 1; Vitral runs models without it"):
        spec_from_mistral(SEVEN | {"vision_encoder": {"hidden_size": 1024}}, tied=False)
    with pytest.raises(SpecError, match="'n_kv_head' .* is unknown; the nearest known one is 'n_kv_heads'"):
        spec_from_mistral(SEVEN | {"n_kv_head": 8}, tied=False)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "phi3", "gpt2", "deepseek2", None, 5])
def test_gguf_files_of_other_families_are_refused(architecture: Any) -> None:
    with pytest.raises(UnsupportedArchitecture, match="Llama 1/2/3.x, Mistral, Mixtral"):
        spec_from_gguf({"general.architecture": architecture}, 10, False, None)


def test_gguf_settings_that_change_the_model_are_refused() -> None:
    good = gguf_metadata(FAMILIES["llama-2"])
    for change, said in (
        ({"llama.attention.value_length": 8}, "heads of one size only, 16"),
        ({"llama.rope.dimension_count": 8}, "heads of one size only, 16"),
        ({"llama.expert_gating_func": 2}, "expert_gating_func is 2"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope'; allowed: none, linear, yarn"),
        ({"llama.block_cont": 2}, "nearest known one is 'llama.block_count'"),
        ({"llama.attention.head_count_kv": np.array([4, 2])}, "differs between layers"),
        ({"llama.embedding_length": "64"}, "allowed: a whole number"),
    ):
        with pytest.raises(SpecError, match=said):
            spec_from_gguf(good | change, 160, False, None)


def test_scalings_without_words_in_a_layout_are_refused() -> None:
    with pytest.raises(SpecError, match="GGUF has no words for the rotary scaling 'dynamic'"):
        gguf_metadata(FAMILIES["llama-dynamic"])
    with pytest.raises(SpecError, match=r"config\.json has no words for free rotary factors"):
        hf_config(FAMILIES["llama-factors"], "float32")
