"""Our names and settings in the dialects that we write: GGUF and Hugging Face. The way back of `mapping.py`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vitral.errors import SpecError
from vitral.formats.mapping import yarn_attention
from vitral.model.law import F32
from vitral.model.rope import frequencies
from vitral.model.spec import ModelSpec, RopeSpec

__all__ = ["gguf_metadata", "gguf_name", "hf_config", "hf_name", "rope_factors"]

_GGUF = {"ln1": "attn_norm", "ln2": "ffn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v"}
_GGUF |= {"attn.o": "attn_output", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down"}
_GGUF |= {"mlp.router": "ffn_gate_inp"}
_HF = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "attn.q": "self_attn.q_proj"}
_HF |= {"attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.o_proj"}
_HF |= {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_HF |= {"mlp.router": "block_sparse_moe.gate"}
_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")
_ONE_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)")


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor; all experts of a layer share one, as they are stacked there.

    >>> gguf_name("blocks.3.attn.o.weight"), gguf_name("blocks.0.mlp.experts.5.up.weight")
    ('blk.3.attn_output.weight', 'blk.0.ffn_up_exps.weight')
    """
    top = {"embed": "token_embd", "ln_final": "output_norm", "unembed": "output"}
    block = _BLOCK.fullmatch(name)
    if block is None:
        return f"{top[name.removesuffix('.weight')]}.weight"
    expert = _ONE_EXPERT.fullmatch(block[2])
    return f"blk.{block[1]}.{_GGUF[block[2]] if expert is None else f'ffn_{expert[2]}_exps'}.weight"


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor.

    >>> hf_name("blocks.3.attn.o.weight"), hf_name("blocks.0.mlp.experts.5.up.weight")
    ('model.layers.3.self_attn.o_proj.weight', 'model.layers.0.block_sparse_moe.experts.5.w3.weight')
    """
    top = {"embed": "model.embed_tokens", "ln_final": "model.norm", "unembed": "lm_head"}
    block = _BLOCK.fullmatch(name)
    if block is None:
        return f"{top[name.removesuffix('.weight')]}.weight"
    expert = _ONE_EXPERT.fullmatch(block[2])
    inner = _HF[block[2]] if expert is None else f"block_sparse_moe.experts.{expert[1]}.{_EXPERT[expert[2]]}"
    return f"model.layers.{block[1]}.{inner}.weight"


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


def hf_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The content of `config.json`; `dtype` is "float32", "float16" or "bfloat16".

    Raises SpecError for a rotary scaling that transformers has no words for.
    """
    family = "llama"
    if spec.moe is not None:
        family = "mixtral"
    elif spec.sliding_window is not None:
        family = "mistral"
    found: dict[str, Any] = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
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
        "rope_scaling": _hf_rope(spec.rope),
    }
    if family != "llama":
        found["sliding_window"] = spec.sliding_window
    else:
        found |= {"attention_bias": False, "mlp_bias": False}
    if spec.moe is not None:
        found |= {"num_local_experts": spec.moe.n_experts, "num_experts_per_tok": spec.moe.n_experts_per_token}
    return found


def _hf_rope(rope: RopeSpec) -> dict[str, Any] | None:
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
