"""Tiny random models of every family, described once for all parity tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitral.model.law import F32
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

_LLAMA_2 = ModelSpec(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    hidden_dim=96,
    vocab_size=160,
    norm_eps=1e-5,
    max_context=64,
    rope=RopeSpec(10_000.0, "none"),
    sliding_window=None,
    tied_embeddings=False,
    moe=None,
)
_LLAMA_31 = replace(
    _LLAMA_2,
    n_kv_heads=2,
    rope=RopeSpec(500_000.0, "llama3", factor=8.0, original_context=64, low_freq_factor=1.0, high_freq_factor=4.0),
)
_MISTRAL = replace(_LLAMA_2, n_kv_heads=2, sliding_window=7)
_MIXTRAL = replace(_LLAMA_2, n_kv_heads=2, rope=RopeSpec(1_000_000.0, "none"), moe=MoeSpec(8, 2))
FAMILIES: dict[str, ModelSpec] = {
    "llama-2": _LLAMA_2,
    "llama-2-grouped": replace(_LLAMA_2, n_heads=8, n_kv_heads=1, head_dim=8),
    "llama-3.1": _LLAMA_31,
    "llama-3.2-tied": replace(_LLAMA_31, tied_embeddings=True),
    "llama-linear": replace(_LLAMA_2, rope=RopeSpec(10_000.0, "linear", factor=4.0)),
    "llama-yarn": replace(
        _LLAMA_2,
        rope=RopeSpec(
            10_000.0, "yarn", factor=4.0, original_context=16, beta_fast=32.0, beta_slow=1.0, attention_factor=1.1386
        ),
    ),
    "llama-dynamic": replace(_LLAMA_2, rope=RopeSpec(10_000.0, "dynamic", factor=2.0, original_context=16)),
    "llama-factors": replace(
        _LLAMA_2, rope=RopeSpec(10_000.0, "factors", factors=(1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0))
    ),
    "mistral-window": _MISTRAL,
    "mistral-nemo": replace(_LLAMA_2, n_kv_heads=2, head_dim=32, rope=RopeSpec(1_000_000.0, "none")),
    "mixtral": _MIXTRAL,
    "mixtral-window": replace(_MISTRAL, moe=MoeSpec(4, 3)),
    "mixtral-dense-first": replace(_MIXTRAL, n_layers=3, moe=MoeSpec(4, 2, n_leading_dense=1)),
}

# Mixtures whose first layers are dense have a layout of ours alone.
IN_TRANSFORMERS = [name for name, spec in FAMILIES.items() if spec.moe is None or not spec.moe.n_leading_dense]


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, F32]:
    """Weights of the size that training gives: gains about one, rows of about unit length."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(spec).items():
        values = rng.standard_normal(shape).astype(np.float32)
        weights[name] = 1 + values / 8 if len(shape) == 1 else values / np.float32(np.sqrt(shape[1]))
    return weights
