"""Foreign names and settings to ours and back: the one home of every dialect.

For each layout: its configuration as a ModelSpec, and its tensor names as canonical ones. Query
and key rows that keep rotary pairs side by side are named by `pairs`; `rows.py` reorders them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitral.errors import SpecError, UnsupportedArchitecture
from vitral.formats.fields import Fields
from vitral.model.rope import frequencies
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

__all__ = [
    "canonical_from_gguf",
    "canonical_from_hf",
    "canonical_from_meta",
    "spec_from_gguf",
    "spec_from_hf",
    "spec_from_llama2c",
    "spec_from_meta",
    "spec_from_mistral",
    "yarn_attention",
]

FAMILIES = "Llama 1/2/3.x, Mistral, Mixtral and models of the same architecture"

# --- GGUF -------------------------------------------------------------------------------------

_GGUF_HARMLESS = {
    "llama.vocab_size": "read from the embedding",
    "llama.rope.scaling.finetuned": "says how the model was trained",
}
_GGUF_TENSORS = [
    (r"token_embd\.weight", "embed.weight"),
    (r"output_norm\.weight", "ln_final.weight"),
    (r"output\.weight", "unembed.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"blocks.\1.ln1.weight"),
    (r"blk\.(\d+)\.attn_(q|k|v)\.weight", r"blocks.\1.attn.\2.weight"),
    (r"blk\.(\d+)\.attn_output\.weight", r"blocks.\1.attn.o.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"blocks.\1.ln2.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"blocks.\1.mlp.\2.weight"),
    (r"blk\.(\d+)\.ffn_gate_inp\.weight", r"blocks.\1.mlp.router.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight", r"blocks.\1.mlp.experts.\3.\2.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", r"blocks.\1.mlp.experts.*.\2.weight"),
]
_HF_TENSORS = [
    (r"model\.embed_tokens\.weight", "embed.weight"),
    (r"model\.norm\.weight", "ln_final.weight"),
    (r"lm_head\.weight", "unembed.weight"),
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"blocks.\1.ln1.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight", r"blocks.\1.attn.\2.weight"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"blocks.\1.ln2.weight"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", r"blocks.\1.mlp.\2.weight"),
    (r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w1\.weight", r"blocks.\1.mlp.experts.\2.gate.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w2\.weight", r"blocks.\1.mlp.experts.\2.down.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w3\.weight", r"blocks.\1.mlp.experts.\2.up.weight"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj", r"blocks.\1.mlp.experts.*.gate+up.weight"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.down_proj", r"blocks.\1.mlp.experts.*.down.weight"),
]
_META_TENSORS = [
    (r"tok_embeddings\.weight", "embed.weight"),
    (r"norm\.weight", "ln_final.weight"),
    (r"output\.weight", "unembed.weight"),
    (r"layers\.(\d+)\.attention_norm\.weight", r"blocks.\1.ln1.weight"),
    (r"layers\.(\d+)\.attention\.w([qkvo])\.weight", r"blocks.\1.attn.\2.weight"),
    (r"layers\.(\d+)\.ffn_norm\.weight", r"blocks.\1.ln2.weight"),
    (r"layers\.(\d+)\.feed_forward\.w1\.weight", r"blocks.\1.mlp.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.w2\.weight", r"blocks.\1.mlp.down.weight"),
    (r"layers\.(\d+)\.feed_forward\.w3\.weight", r"blocks.\1.mlp.up.weight"),
    (r"layers\.(\d+)\.feed_forward\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w1\.weight", r"blocks.\1.mlp.experts.\2.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w2\.weight", r"blocks.\1.mlp.experts.\2.down.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w3\.weight", r"blocks.\1.mlp.experts.\2.up.weight"),
    # Mixtral 8x7B as first published: experts below each other, w2 with rows and columns exchanged
    (r"layers\.(\d+)\.block_sparse_moe\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w1", r"blocks.\1.mlp.experts.*.gate.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w2", r"blocks.\1.mlp.experts.*.down^T.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w3", r"blocks.\1.mlp.experts.*.up.weight"),
]
# Tensors that are read apart or hold what the configuration says already.
_IGNORED = {
    r"rope_freqs\.weight": "GGUF: read as the rotary scaling",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "rotary frequencies, computed from the configuration",
    r"rope\.freqs": "rotary frequencies, computed from the configuration",
}


def is_ignored(name: str) -> bool:
    """Whether a foreign tensor is known to add nothing to the configuration.

    >>> is_ignored("rope.freqs"), is_ignored("output.weight")
    (True, False)
    """
    return any(re.fullmatch(pattern, name) for pattern in _IGNORED)


def _canonical(table: list[tuple[str, str]], name: str) -> str | None:
    for pattern, ours in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def canonical_from_gguf(name: str) -> str | None:
    """Our name of a GGUF tensor, or None; `*` stands for all experts stacked in one tensor.

    >>> canonical_from_gguf("blk.3.ffn_down_exps.weight")
    'blocks.3.mlp.experts.*.down.weight'
    """
    return _canonical(_GGUF_TENSORS, name)


def canonical_from_hf(name: str) -> str | None:
    """Our name of a Hugging Face tensor, or None.

    >>> canonical_from_hf("model.layers.0.self_attn.q_proj.weight")
    'blocks.0.attn.q.weight'
    """
    return _canonical(_HF_TENSORS, name)


def canonical_from_meta(name: str) -> str | None:
    """Our name of a tensor in Meta's or Mistral's own layout, or None.

    >>> canonical_from_meta("layers.0.feed_forward.w3.weight")
    'blocks.0.mlp.up.weight'
    """
    return _canonical(_META_TENSORS, name)


def spec_from_gguf(
    metadata: Mapping[str, Any], vocab_size: int, tied: bool, rope_factors: tuple[float, ...] | None
) -> ModelSpec:
    """The architecture of a GGUF file.

    `vocab_size` is the number of embedding rows, `tied` says that there is no output matrix,
    `rope_factors` is the tensor `rope_freqs.weight`, if there is one.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != "llama":
        raise UnsupportedArchitecture(
            f"the file holds a model of architecture {architecture!r:.80}; Vitral runs {FAMILIES} (in GGUF: 'llama')"
        )
    ours = {name: value for name, value in metadata.items() if name.startswith("llama.")}
    fields = Fields("GGUF metadata", ours, _GGUF_HARMLESS, notes=metadata)
    dim = fields.get("llama.embedding_length", int)
    n_heads = _heads(fields, "llama.attention.head_count", None)
    n_kv_heads = _heads(fields, "llama.attention.head_count_kv", n_heads)
    head_dim = fields.get("llama.attention.key_length", int, dim // max(n_heads, 1))
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if fields.get(name, int, head_dim) != head_dim:
            raise SpecError(f"GGUF metadata: {name} is {ours[name]}; Vitral runs heads of one size only, {head_dim}")
    fields.must_be("llama.expert_gating_func", (1,), "1 is softmax")
    fields.must_be("llama.use_parallel_residual", (False, True), "no effect on this architecture")
    fields.must_be("llama.tensor_data_layout", ("Meta AI original pth",), "pairs of rotary rows side by side")
    experts = fields.get("llama.expert_count", int, 0)
    used = fields.get("llama.expert_used_count", int, 0)
    spec = ModelSpec(
        dim=dim,
        n_layers=fields.get("llama.block_count", int),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_dim=fields.get("llama.feed_forward_length", int),
        vocab_size=vocab_size,
        norm_eps=_decimal(fields.get("llama.attention.layer_norm_rms_epsilon", float)),
        max_context=fields.get("llama.context_length", int),
        rope=_gguf_rope(fields, rope_factors),
        sliding_window=fields.get("llama.attention.sliding_window", int, 0) or None,
        tied_embeddings=tied,
        moe=MoeSpec(experts, used) if experts else None,
    )
    fields.finish()
    return spec


def _heads(fields: Fields, name: str, default: int | None) -> int:
    value = fields.values.get(name)
    if isinstance(value, np.ndarray):  # one number for each layer
        if not value.size or (value != value[0]).any():
            raise SpecError(f"GGUF metadata: {name} differs between layers; Vitral runs equal layers only")
        fields.read.add(name)
        return int(value[0])
    return int(fields.get(name, int) if default is None else fields.get(name, int, default))


def _gguf_rope(fields: Fields, factors: tuple[float, ...] | None) -> RopeSpec:
    theta = _decimal(fields.get("llama.rope.freq_base", float, 10_000.0))
    kind = fields.get("llama.rope.scaling.type", str, "none")
    factor = fields.get("llama.rope.scaling.factor", float, fields.get("llama.rope.scale_linear", float, 1.0))
    original = fields.get("llama.rope.scaling.original_context_length", int, fields.values.get("llama.context_length"))
    attention = fields.get("llama.rope.scaling.attn_factor", float, 1.0)
    factor, attention = _decimal(factor), _decimal(attention)
    if factors is not None:
        if kind != "none":
            raise SpecError(f"the file has both rope_freqs.weight and rope scaling {kind!r}; one is allowed")
        return _llama3_of_factors(fields, theta, factors) or RopeSpec(theta, "factors", factors=factors)
    match kind:
        case "none":
            return RopeSpec(theta, "none") if factor == 1.0 else RopeSpec(theta, "linear", factor=factor)
        case "linear":
            return RopeSpec(theta, "linear", factor=factor)
        case "yarn":
            return RopeSpec(
                theta,
                "yarn",
                factor=factor,
                original_context=original,
                beta_fast=_decimal(fields.get("llama.rope.scaling.yarn_beta_fast", float, 32.0)),
                beta_slow=_decimal(fields.get("llama.rope.scaling.yarn_beta_slow", float, 1.0)),
                attention_factor=attention * yarn_attention(factor),
            )
    raise SpecError(f"GGUF metadata: rope scaling {kind!r}; allowed: none, linear, yarn, or rope_freqs.weight")


def _decimal(value: float) -> float:
    """The number that was meant: GGUF holds it in float32, other layouts in decimal digits.

    >>> _decimal(9.999999747378752e-06)
    1e-05
    """
    with np.errstate(over="ignore"):
        short = np.float32(value)
    return float(str(short)) if float(short) == value else value


def _llama3_of_factors(fields: Fields, theta: float, factors: tuple[float, ...]) -> RopeSpec | None:
    """The scaling of Llama 3.1 and later, if that is where the factors come from; None if not.

    GGUF keeps only the factors, in float32. With the scaling itself, frequencies are those of the
    other layouts to the last bit. Its parameters are the published ones, or those that Vitral noted
    in the file; they count only if they give these very factors.
    """
    if len(factors) > 256:
        return None
    noted = fields.notes
    try:
        rope = RopeSpec(
            theta,
            "llama3",
            factor=float(noted.get("vitral.rope.factor", max(factors))),
            original_context=int(noted.get("vitral.rope.original_context_length", 8192)),
            low_freq_factor=float(noted.get("vitral.rope.low_freq_factor", 1.0)),
            high_freq_factor=float(noted.get("vitral.rope.high_freq_factor", 4.0)),
        )
        plain = frequencies(RopeSpec(theta, "none"), 2 * len(factors), 1)
        expected = plain / frequencies(rope, 2 * len(factors), 1)
    except (SpecError, TypeError, ValueError, ArithmeticError):
        return None
    return rope if np.allclose(expected, factors, rtol=1e-6, atol=0) else None


def yarn_attention(factor: float) -> float:
    """YaRN's temperature, 0.1 ln(s) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


# --- Hugging Face -----------------------------------------------------------------------------

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
_HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
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
    if family == "mixtral":
        moe = MoeSpec(fields.get("num_local_experts", int, 8), fields.get("num_experts_per_tok", int, 2))
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
        rope=_hf_rope(fields, defaults["theta"], defaults["context"]),
        sliding_window=None if family == "llama" else window or None,  # transformers' Llama has no window
        tied_embeddings=fields.get("tie_word_embeddings", bool, False),
        moe=moe,
    )
    fields.finish()
    return spec


def _hf_rope(fields: Fields, default_theta: float, default_context: int) -> RopeSpec:
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


# --- Meta, Mistral and llama2.c ---------------------------------------------------------------

_PARAMS_HARMLESS = {
    "model_parallel_size": "how many shards there are; they are counted",
    "max_batch_size": "run-time limit",
    "use_cache": "run-time switch",
}


def spec_from_meta(params: Mapping[str, Any], vocab_size: int, hidden_dim: int, tied: bool) -> ModelSpec:
    """The architecture of Meta's `params.json`; rows of the embedding and of w1 come from the tensors."""
    fields = Fields("params.json", params, _PARAMS_HARMLESS)
    for name in ("quantization_args", "lora_args", "vision_model"):
        fields.must_be(name, (None,), "text models with plain weights; take the original of this model")
    for name in ("vision_chunk_size", "vision_num_cross_attention_layers"):
        fields.must_be(name, (-1, None), "text models")
    dim, n_heads = fields.get("dim", int), fields.get("n_heads", int)
    declared = fields.get("vocab_size", int, -1)
    if declared not in (-1, vocab_size):
        raise SpecError(f"params.json: vocab_size is {declared}; the embedding has {vocab_size} rows")
    _check_hidden(fields, dim, hidden_dim)
    spec = ModelSpec(
        dim=dim,
        n_layers=fields.get("n_layers", int),
        n_heads=n_heads,
        n_kv_heads=fields.get("n_kv_heads", int, n_heads),
        head_dim=fields.get("head_dim", int, dim // max(n_heads, 1)),
        hidden_dim=hidden_dim,
        vocab_size=vocab_size,
        norm_eps=fields.get("norm_eps", float),
        max_context=fields.get("max_seq_len", int, _meta_context(fields)),
        rope=_meta_rope(fields, dim),
        sliding_window=None,
        tied_embeddings=tied,
        moe=None,
    )
    fields.finish()
    return spec


def _meta_rope(fields: Fields, dim: int) -> RopeSpec:
    theta = fields.get("rope_theta", float, 10_000.0)
    if not fields.get("use_scaled_rope", bool, False):
        return RopeSpec(theta, "none")
    # params.json says only that there is scaling. The factor is 8, and 32 for Llama 3.2 1B and 3B, the only
    # ones with a dim up to 3072 (config.json of the same models; transformers' convert_llama_weights_to_hf.py).
    return RopeSpec(
        theta,
        "llama3",
        factor=fields.get("rope_scaling_factor", float, 32.0 if dim <= 3072 else 8.0),
        original_context=8192,
        low_freq_factor=1.0,
        high_freq_factor=fields.get("rope_high_freq_factor", float, 4.0),
    )


def _meta_context(fields: Fields) -> int:
    """The context that the model cards state; `params.json` leaves it out."""
    if fields.get("use_scaled_rope", bool, False):
        return 131_072  # Llama 3.1 to 3.3
    theta = fields.get("rope_theta", float, 10_000.0)
    if theta != 10_000.0:
        return 16_384 if theta == 1_000_000.0 else 8192  # Code Llama; Llama 3
    first = fields.get("norm_eps", float) < 1e-5 or (
        fields.get("dim", int) == 8192 and "n_kv_heads" not in fields.values
    )
    return 2048 if first else 4096  # Llama 1; Llama 2


def _check_hidden(fields: Fields, dim: int, hidden_dim: int) -> None:
    multiple = fields.get("multiple_of", int, 256)
    growth = fields.get("ffn_dim_multiplier", float, 1.0)
    if multiple < 1 or not 0 < growth < 1000:
        raise SpecError(
            f"params.json: multiple_of {multiple} and ffn_dim_multiplier {growth}; allowed: above 0, sensible"
        )
    wanted = -(-int(growth * int(2 * 4 * dim / 3)) // multiple) * multiple
    if fields.get("hidden_dim", int, wanted) != hidden_dim:
        raise SpecError(f"params.json describes a hidden_dim of {wanted}; the tensors have {hidden_dim}")


def spec_from_mistral(params: Mapping[str, Any], tied: bool) -> ModelSpec:
    """The architecture of Mistral's `params.json`."""
    fields = Fields("params.json", params, _PARAMS_HARMLESS)
    fields.must_be("model_type", ("transformer", "mistral", "mixtral", None), "transformers")
    for name in (
        "vision_encoder",
        "multimodal",
        "quantization",
        "lora",
        "llama_4_scaling",
        "q_lora_rank",
        "kv_lora_rank",
    ):
        fields.must_be(name, (None,), "text models with plain weights")
    fields.must_be("use_biases", (False, None), "no biases in these families")
    fields.must_be("causal", (True, None), "decoders")
    window = params.get("sliding_window")
    if isinstance(window, list):
        raise SpecError(
            f"params.json: sliding_window is a list ({str(window)[:60]}), one window for each layer in turn; "
            "Vitral runs layers that are all alike"
        )
    window = fields.get("sliding_window", int, 0) or None
    moe_fields = fields.get("moe", dict, None)
    moe = None
    if moe_fields is not None:
        inner = Fields("params.json, moe", moe_fields, {})
        moe = MoeSpec(inner.get("num_experts", int), inner.get("num_experts_per_tok", int))
        inner.finish()
    longest = fields.get("max_position_embeddings", int, fields.get("model_max_length", int, 32_768))
    # mistral-inference: a base of a million, but ten thousand for the first model, the one with a window.
    theta = fields.get("rope_theta", float, 1_000_000.0 if window is None else 10_000.0)
    spec = ModelSpec(
        dim=fields.get("dim", int),
        n_layers=fields.get("n_layers", int),
        n_heads=fields.get("n_heads", int),
        n_kv_heads=fields.get("n_kv_heads", int),
        head_dim=fields.get("head_dim", int),
        hidden_dim=fields.get("hidden_dim", int),
        vocab_size=fields.get("vocab_size", int),
        norm_eps=fields.get("norm_eps", float),
        max_context=fields.get("max_seq_len", int, longest),
        rope=_mistral_rope(fields, theta),
        sliding_window=window,
        tied_embeddings=fields.get("tied_embeddings", bool, tied),
        moe=moe,
    )
    fields.finish()
    return spec


def _mistral_rope(fields: Fields, theta: float) -> RopeSpec:
    parameters = fields.get("yarn", dict, None)
    if parameters is None:
        return RopeSpec(theta, "none")
    yarn = Fields("params.json, yarn", parameters, {})
    factor = yarn.get("factor", float)
    found = RopeSpec(
        theta,
        "yarn",
        factor=factor,
        original_context=yarn.get("original_max_position_embeddings", int),
        beta_fast=yarn.get("beta", float, 32.0),
        beta_slow=yarn.get("alpha", float, 1.0),
        attention_factor=yarn_attention(factor) if yarn.get("apply_scale", bool, True) else 1.0,
    )
    yarn.finish()
    return found


def spec_from_llama2c(header: Sequence[int]) -> ModelSpec:
    """The architecture of a llama2.c header: dim, hidden_dim, layers, heads, kv heads, vocabulary, context."""
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_context = header
    return ModelSpec(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // max(n_heads, 1),
        hidden_dim=hidden_dim,
        vocab_size=abs(vocab_size),
        norm_eps=1e-5,  # run.c has it as a constant, and the base 10000
        max_context=max_context,
        rope=RopeSpec(10_000.0, "none"),
        sliding_window=None,
        tied_embeddings=vocab_size > 0,
        moe=None,
    )
