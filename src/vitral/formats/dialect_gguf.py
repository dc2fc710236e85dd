"""The architecture in GGUF's words, `llama.*` keys and the tensor `rope_freqs.weight`: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitral.errors import SpecError, UnsupportedArchitecture
from vitral.formats.fields import FAMILIES, Fields, yarn_attention
from vitral.model.law import F32
from vitral.model.rope import frequencies
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

__all__ = ["gguf_metadata", "rope_factors", "spec_from_gguf"]

_GGUF_HARMLESS = {
    "llama.vocab_size": "read from the embedding",
    "llama.rope.scaling.finetuned": "says how the model was trained",
}


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
        moe=MoeSpec(experts, used, fields.get("llama.leading_dense_block_count", int, 0)) if experts else None,
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


def rope_factors(spec: ModelSpec) -> F32 | None:
    """GGUF's tensor `rope_freqs.weight`: what each frequency is divided by, (D / 2,); None if nothing needs it."""
    if spec.rope.scaling == "factors":
        return np.array(spec.rope.factors, np.float32)
    if spec.rope.scaling != "llama3":
        return None
    plain = frequencies(RopeSpec(spec.rope.theta, "none"), spec.head_dim, spec.max_context)
    return (plain / frequencies(spec.rope, spec.head_dim, spec.max_context)).astype(np.float32)


def gguf_metadata(spec: ModelSpec) -> dict[str, Any]:
    """The `llama.*` keys of a GGUF file. Raises SpecError for a rotary scaling that GGUF has no words for."""
    rope = spec.rope
    found: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.vocab_size": spec.vocab_size,
        "llama.context_length": spec.max_context,
        "llama.embedding_length": spec.dim,
        "llama.block_count": spec.n_layers,
        "llama.feed_forward_length": spec.hidden_dim,
        "llama.rope.dimension_count": spec.head_dim,
        "llama.attention.head_count": spec.n_heads,
        "llama.attention.head_count_kv": spec.n_kv_heads,
        "llama.attention.key_length": spec.head_dim,
        "llama.attention.value_length": spec.head_dim,
        "llama.attention.layer_norm_rms_epsilon": spec.norm_eps,
        "llama.rope.freq_base": rope.theta,
    }
    if spec.sliding_window is not None:
        found["llama.attention.sliding_window"] = spec.sliding_window
    if spec.moe is not None:
        found["llama.expert_count"] = spec.moe.n_experts
        found["llama.expert_used_count"] = spec.moe.n_experts_per_token
        if spec.moe.n_leading_dense:  # DeepSeek's word; llama.cpp does not read it for this architecture
            found["llama.leading_dense_block_count"] = spec.moe.n_leading_dense
    if rope.scaling == "dynamic":
        raise SpecError("GGUF has no words for the rotary scaling 'dynamic'; write safetensors, or set it to 'yarn'")
    if rope.scaling in ("linear", "yarn"):
        found["llama.rope.scaling.type"] = rope.scaling
        found["llama.rope.scaling.factor"] = rope.factor
    if rope.scaling == "yarn":
        assert rope.attention_factor is not None and rope.factor is not None, "RopeSpec checks it"
        found["llama.rope.scaling.original_context_length"] = rope.original_context
        found["llama.rope.scaling.yarn_beta_fast"] = rope.beta_fast
        found["llama.rope.scaling.yarn_beta_slow"] = rope.beta_slow
        found["llama.rope.scaling.attn_factor"] = rope.attention_factor / yarn_attention(rope.factor)
    if rope.scaling == "llama3":  # what rope_freqs.weight was made from, for readers that can use it
        found["vitral.rope.factor"] = rope.factor
        found["vitral.rope.original_context_length"] = rope.original_context
        found["vitral.rope.low_freq_factor"] = rope.low_freq_factor
        found["vitral.rope.high_freq_factor"] = rope.high_freq_factor
    return found
