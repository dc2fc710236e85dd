"""The reference agrees with Hugging Face transformers, an independent program, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.parity.families import FAMILIES, IN_TRANSFORMERS, random_weights
from vitral.model.law import F32
from vitral.model.reference import Cache, Reference
from vitral.model.spec import ModelSpec

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5  # largest difference over largest magnitude
N_TOKENS = 24


def their_config(spec: ModelSpec) -> Any:
    rope: dict[str, Any] = {"rope_type": spec.rope.scaling, "rope_theta": spec.rope.theta}
    if spec.rope.scaling in ("none", "factors"):
        rope["rope_type"] = "default"
    names = {"factor": "factor", "original_context": "original_max_position_embeddings"}
    for ours in ("factor", "original_context", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        if getattr(spec.rope, ours) is not None:
            rope[names.get(ours, ours)] = getattr(spec.rope, ours)
    if spec.rope.attention_factor is not None:
        rope["attention_factor"] = spec.rope.attention_factor
    fields: dict[str, Any] = {
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.hidden_dim,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.rope.original_context or spec.max_context,
        "tie_word_embeddings": spec.tied_embeddings,
        "rope_parameters": rope,
        "attn_implementation": "eager",
    }
    if spec.moe is not None:
        fields |= {"num_local_experts": spec.moe.n_experts, "num_experts_per_tok": spec.moe.n_experts_per_token}
        return transformers.MixtralConfig(**fields, sliding_window=spec.sliding_window)
    if spec.sliding_window is not None or spec.head_dim * spec.n_heads != spec.dim:
        return transformers.MistralConfig(**fields, sliding_window=spec.sliding_window)
    return transformers.LlamaConfig(**fields)


def their_model(spec: ModelSpec, weights: dict[str, F32]) -> Any:
    model = transformers.AutoModelForCausalLM.from_config(their_config(spec), dtype=torch.float32)
    state = dict(model.state_dict())
    ours = their_names(spec, weights)
    if spec.tied_embeddings:
        state.pop("lm_head.weight", None)
    assert set(ours) == set(state), set(ours) ^ set(state)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in ours.items()}, strict=False)
    if spec.rope.scaling == "factors":
        assert spec.rope.factors is not None  # GGUF's rope_freqs: what llama.cpp divides each pair's speed by
        pairs = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
        turns = spec.rope.theta**-pairs / torch.tensor(spec.rope.factors, dtype=torch.float64)
        model.model.rotary_emb.inv_freq = turns.float()
    return model.eval()


def their_names(spec: ModelSpec, weights: dict[str, F32]) -> dict[str, F32]:
    """Our weights under the names of transformers 5, which stacks the experts of a layer."""
    found = {
        "model.embed_tokens.weight": weights["embed.weight"],
        "model.norm.weight": weights["ln_final.weight"],
    }
    if not spec.tied_embeddings:
        found["lm_head.weight"] = weights["unembed.weight"]
    words = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "mlp.router": "mlp.gate"}
    words |= {f"attn.{x}": f"self_attn.{x}_proj" for x in "qkvo"}
    words |= {f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    for i in range(spec.n_layers):
        for ours, theirs in words.items():
            if f"blocks.{i}.{ours}.weight" in weights:
                found[f"model.layers.{i}.{theirs}.weight"] = weights[f"blocks.{i}.{ours}.weight"]
        if spec.moe is not None:
            parts = {
                which: [weights[f"blocks.{i}.mlp.experts.{e}.{which}.weight"] for e in range(spec.moe.n_experts)]
                for which in ("gate", "up", "down")
            }
            both = [np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
            found[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.stack(both)
            found[f"model.layers.{i}.mlp.experts.down_proj"] = np.stack(parts["down"])
    return found


def relative_error(ours: F32, theirs: F32) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_reference_gives_the_logits_of_transformers(family: str) -> None:
    spec = FAMILIES[family]
    weights = random_weights(spec)
    ids = np.random.default_rng(1).integers(0, spec.vocab_size, N_TOKENS)
    with torch.no_grad():
        theirs = their_model(spec, weights)(torch.from_numpy(ids)[None]).logits[0].numpy()
    ours = Reference(spec, weights, context_length=N_TOKENS).forward(ids.tolist())
    assert relative_error(ours, theirs) < TOLERANCE


def test_a_cached_chunked_pass_gives_the_same_bits() -> None:
    for family, spec in FAMILIES.items():
        model = Reference(spec, random_weights(spec), context_length=N_TOKENS)
        ids = np.random.default_rng(2).integers(0, spec.vocab_size, N_TOKENS).tolist()
        whole = model.forward(ids)
        for chunk in (1, 7):
            cache = Cache(spec)
            pieces = [model.forward(ids[i : i + chunk], cache) for i in range(0, N_TOKENS, chunk)]
            assert np.concatenate(pieces).tobytes() == whole.tobytes(), (family, chunk)
