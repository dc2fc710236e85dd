"""The architecture in the words of `params.json`, Meta's and Mistral's, and of llama2.c's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.errors import SpecError
from vitral.formats.fields import Fields, yarn_attention
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

__all__ = ["spec_from_llama2c", "spec_from_meta", "spec_from_mistral"]

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
