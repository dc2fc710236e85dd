"""The architecture in the words of Hugging Face's `config.json`, of old and new transformers: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitral.errors import SpecError, UnsupportedArchitecture
from vitral.formats.fields import FAMILIES, Fields, yarn_attention
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

__all__ = ["hf_config", "spec_from_hf"]

_HF_HARMLESS = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"), "the tokenizer's"),
    **dict.fromkeys(("tokenizer_class", "decoder_start_token_id", "bad_words_ids"), "the tokenizer's business"),
    **dict.fromkeys(("torch_dtype", "dtype"), "the tensors say it themselves"),
    **dict.fromkeys(("transformers_version", "_name_or_path", "model_type", "architectures"), "provenance, read apart"),
    **dict.fromkeys(("use_cache", "return_dict", "output_attentions", "output_hidden_states"), "run-time switches"),
    **dict.fromkeys(("_attn_implementation_autoset", "attn_implementation", "_attn_implementation"), "run-time switches"),
    **dict.fromkeys(("_flash_attn_2_enabled", "use_flash_attention_2", "torchscript", "use_bfloat16"), "run-time switches"),
    **dict.fromkeys(("initializer_range", "attention_dropout", "hidden_dropout", "router_jitter_noise"), "training only"),
    **dict.fromkeys(("router_aux_loss_coef", "output_router_logits", "embd_pdrop", "resid_pdrop"), "training only"),
    **dict.fromkeys(("pretraining_tp", "transformers.js_config", "use_sequence_parallel"), "how others ran it"),
    **dict.fromkeys(("is_llama_config",), "a note of the trainer; the other fields say the same"),
    **dict.fromkeys(("max_sequence_length", "auto_map", "unsloth_version", "unsloth_fixed"), "notes of other tools"),
    **dict.fromkeys(("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"), "sampling defaults"),
    **dict.fromkeys(("num_beams", "repetition_penalty", "num_return_sequences"), "sampling defaults"),
    **dict.fromkeys(("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"), "classifiers only"),
    **dict.fromkeys(("is_encoder_decoder", "chunk_size_feed_forward", "tie_encoder_decoder"), "notes of transformers"),
    **dict.fromkeys(("is_decoder", "add_cross_attention", "cross_attention_hidden_size"), "notes of transformers"),
}  # fmt: skip
# What transformers assumes where config.json is silent.
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"theta": 1e4, "eps": 1e-6, "context": 2048, "kv_heads": None, "window": None},
    "mistral": {"theta": 1e4, "eps": 1e-6, "context": 131_072, "kv_heads": 8, "window": 4096},
    "mixtral": {"theta": 1e6, "eps": 1e-5, "context": 131_072, "kv_heads": 8, "window": None},
}
# Ours, for mixtures whose first layers are dense: under Mixtral's name others would fill those layers with noise.
_OURS, _LEADING_DENSE = "vitral_mixtral", "first_k_dense_replace"
_HF_DEFAULTS[_OURS] = _HF_DEFAULTS["mixtral"]
_HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "VitralMixtralForCausalLM": _OURS,
}


def spec_from_hf(config: Mapping[str, Any]) -> ModelSpec:
    """The architecture of a Hugging Face `config.json`."""
    named = config.get("architectures") or [config.get("model_type")]
    name = named[0] if isinstance(named, list) and len(named) == 1 else named
    family = _HF_ARCHITECTURES.get(str(name)) or (name if name in _HF_ARCHITECTURES.values() else None)
    if family is None:
        raise UnsupportedArchitecture(f"config.json names the architecture {name!r}; Vitral runs {FAMILIES}")
    if config.get("quantization_config"):
        quantised = config["quantization_config"]
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise SpecError(
            f"config.json: the weights are quantised with {str(method)[:40]!r}; use the original or a GGUF file"
        )
    defaults = _HF_DEFAULTS[str(family)]
    fields = Fields("config.json", config, _HF_HARMLESS)
    fields.must_be("quantization_config", (None, {}), "plain weights")
    fields.must_be("hidden_act", ("silu",), "SwiGLU")
    fields.must_be("rope_interleaved", (False, None), "pairs of rotary rows half a head apart")
    fields.must_be("pruned_heads", ({}, None), "whole heads")
    for bias in ("attention_bias", "mlp_bias"):
        fields.must_be(bias, (False, None), "no biases in these families")
    dim, n_heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
    window = config.get("sliding_window", defaults["window"])
    fields.get("sliding_window", int, None)
    moe = None
    if family in ("mixtral", _OURS):
        dense = fields.get(_LEADING_DENSE, int) if family == _OURS else 0
        moe = MoeSpec(fields.get("num_local_experts", int, 8), fields.get("num_experts_per_tok", int, 2), dense)
    spec = ModelSpec(
        dim=dim,
        n_layers=fields.get("num_hidden_layers", int),
        n_heads=n_heads,
        n_kv_heads=fields.get("num_key_value_heads", int, defaults["kv_heads"] or n_heads),
        head_dim=fields.get("head_dim", int, dim // max(n_heads, 1)),
        hidden_dim=fields.get("intermediate_size", int),
        vocab_size=fields.get("vocab_size", int),
        norm_eps=fields.get("rms_norm_eps", float, defaults["eps"]),
        max_context=fields.get("max_position_embeddings", int, defaults["context"]),
        rope=_rope(fields, defaults["theta"], defaults["context"]),
        sliding_window=None if family == "llama" else window or None,  # transformers' Llama has no window
        tied_embeddings=fields.get("tie_word_embeddings", bool, False),
        moe=moe,
    )
    fields.finish()
    return spec


def _rope(fields: Fields, default_theta: float, default_context: int) -> RopeSpec:
    parameters = fields.get("rope_parameters", dict, None) or fields.get("rope_scaling", dict, None) or {}
    fields.read |= {"rope_parameters", "rope_scaling"}
    rope = Fields("config.json, rope scaling", parameters, {})
    rope.must_be("truncate", (True,), "yarn rounds its range")
    rope.must_be("partial_rotary_factor", (1, 1.0, None), "whole heads turn")
    fields.must_be("partial_rotary_factor", (1, 1.0, None), "whole heads turn")
    theta = rope.get("rope_theta", float, fields.get("rope_theta", float, default_theta))
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    longest = fields.get("max_position_embeddings", int, default_context)
    match kind:
        case "default":
            found = RopeSpec(theta, "none")
        case "linear":
            found = RopeSpec(theta, "linear", factor=rope.get("factor", float))
        case "dynamic":
            original = rope.get("original_max_position_embeddings", int, longest)
            found = RopeSpec(theta, "dynamic", factor=rope.get("factor", float), original_context=original)
        case "llama3":
            found = RopeSpec(
                theta,
                "llama3",
                factor=rope.get("factor", float),
                original_context=rope.get("original_max_position_embeddings", int),
                low_freq_factor=rope.get("low_freq_factor", float),
                high_freq_factor=rope.get("high_freq_factor", float),
            )
        case "yarn":
            for name in ("mscale", "mscale_all_dim"):
                rope.must_be(name, (None, 1, 1.0), "DeepSeek's temperature")
            rope.must_be("finetuned", (True, False, None), "says how the model was trained")
            factor = rope.get("factor", float)
            found = RopeSpec(
                theta,
                "yarn",
                factor=factor,
                original_context=rope.get("original_max_position_embeddings", int, longest),
                beta_fast=rope.get("beta_fast", float, 32.0),
                beta_slow=rope.get("beta_slow", float, 1.0),
                attention_factor=rope.get("attention_factor", float, yarn_attention(factor)),
            )
        case _:
            raise SpecError(f"config.json: rope scaling {kind[:40]!r}; allowed: default, linear, dynamic, yarn, llama3")
    rope.finish()
    return found


def hf_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The content of `config.json`; `dtype` is "float32", "float16" or "bfloat16".

    Raises SpecError for a rotary scaling that transformers has no words for.
    """
    family = "llama"
    if spec.moe is not None:
        family = "mixtral"
    elif spec.sliding_window is not None:
        family = "mistral"
    ours = spec.moe is not None and spec.moe.n_leading_dense > 0
    found: dict[str, Any] = {
        "architectures": ["VitralMixtralForCausalLM" if ours else f"{family.capitalize()}ForCausalLM"],
        "model_type": _OURS if ours else family,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": spec.dim,
        "intermediate_size": spec.hidden_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.max_context,
        "tie_word_embeddings": spec.tied_embeddings,
        "rope_theta": spec.rope.theta,
        "rope_scaling": _rope_config(spec.rope),
    }
    if family != "llama":
        found["sliding_window"] = spec.sliding_window
    else:
        found |= {"attention_bias": False, "mlp_bias": False}
    if spec.moe is not None:
        found |= {"num_local_experts": spec.moe.n_experts, "num_experts_per_tok": spec.moe.n_experts_per_token}
        if ours:
            found[_LEADING_DENSE] = spec.moe.n_leading_dense
    return found


def _rope_config(rope: RopeSpec) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    if rope.scaling == "factors":
        raise SpecError("config.json has no words for free rotary factors (GGUF's rope_freqs.weight); write GGUF")
    found: dict[str, Any] = {"rope_type": rope.scaling, "type": rope.scaling, "factor": rope.factor}
    if rope.original_context is not None:
        found["original_max_position_embeddings"] = rope.original_context
    for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
        if getattr(rope, name) is not None:
            found[name] = getattr(rope, name)
    return found
