"""The names and shapes of every value that may be seen or replaced.

The names are TransformerLens'; where it has none, or one with several meanings, ours say what
they are (`hook_router_logits`, `hook_expert_weights_topk`, `attn.hook_in`). Shape letters as in
`spec.py`, without the batch: k is n_experts_per_token and n the tokens routed to an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from vitral.model.spec import ModelSpec, MoeSpec

__all__ = ["RESULT", "Tap", "is_attention", "row_shape", "taps"]

RESULT = "attn.hook_result"
"""Behind `blocks.N.`: what each head adds to the residual stream (T, H, C). No pass needs it, so it is no `Tap`: who asks
for it or changes it has it made, head by head, as `Reference.head_result` says."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A named value: its full name, its shape in letters and what it is."""

    name: str
    shape: str
    meaning: str


_BLOCK = [
    ("hook_resid_pre", "T C", "residual stream that enters the block"),
    ("ln1.hook_scale", "T 1", "root of the mean square"),
    ("ln1.hook_normalized", "T C", "residual stream over its scale, before the gain"),
    ("attn.hook_in", "T C", "after the gain: what the query, key and value weights read"),
    ("attn.hook_q", "T H D", "queries before rotation"),
    ("attn.hook_k", "T K D", "keys before rotation"),
    ("attn.hook_v", "T K D", "values"),
    ("attn.hook_rot_q", "T H D", "queries after rotation"),
    ("attn.hook_rot_k", "T K D", "keys after rotation, before the cache rounds them"),
    ("attn.hook_attn_scores", "H T S", "scaled dot products; minus infinity where masked"),
    ("attn.hook_pattern", "H T S", "softmax of the scores"),
    ("attn.hook_z", "T H D", "values mixed by the pattern"),
    ("hook_attn_out", "T C", "what attention adds to the residual stream"),
    ("hook_resid_mid", "T C", "residual stream between attention and the feed-forward part"),
    ("ln2.hook_scale", "T 1", "root of the mean square"),
    ("ln2.hook_normalized", "T C", "residual stream over its scale, before the gain"),
    ("mlp.hook_in", "T C", "after the gain: what the gate, up or router weights read"),
]
_SWIGLU = [
    ("hook_pre", "T F", "gate before the activation"),
    ("hook_pre_linear", "T F", "up projection"),
    ("hook_post", "T F", "silu(gate) * up: the neurons"),
]
_ROUTER = [
    ("hook_router_logits", "T E", "one number for each expert"),
    ("hook_router_probs", "T E", "softmax over all experts"),
    ("hook_expert_indices", "T k", "the chosen experts, best first (int32)"),
    ("hook_expert_weights_topk", "T k", "their probabilities, made to sum to one"),
]
_END = [
    ("hook_mlp_out", "T C", "what the feed-forward part adds to the residual stream"),
    ("hook_resid_post", "T C", "residual stream that leaves the block"),
]
_FINAL = [
    ("ln_final.hook_scale", "T 1", "root of the mean square"),
    ("ln_final.hook_normalized", "T C", "residual stream over its scale, before the gain"),
    ("unembed.hook_in", "T C", "after the gain: what the unembedding reads"),
    ("unembed.hook_out", "T V", "logits"),
]


def taps(spec: ModelSpec) -> list[Tap]:
    """Every tap of a model, in the order in which the forward pass reaches them."""
    found = [Tap("hook_embed", "T C", "token embedding")]
    for i in range(spec.n_layers):
        found += [Tap(f"blocks.{i}.{name}", shape, text) for name, shape, text in _block(spec.moe_of(i))]
    return found + [Tap(*entry) for entry in _FINAL]


def _block(moe: MoeSpec | None) -> list[tuple[str, str, str]]:
    block = list(_BLOCK)
    if moe is None:
        block += _inside("mlp", _SWIGLU)
    else:
        block += _inside("mlp", _ROUTER)
        for e in range(moe.n_experts):
            expert = [*_SWIGLU, ("hook_out", "T C", "output before the mixing weight")]
            block += [
                (name, shape.replace("T", "n"), text) for name, shape, text in _inside(f"mlp.experts.{e}", expert)
            ]
    return block + _END


def is_attention(name: str) -> bool:
    """Whether a value has a row for each head before its tokens, (H, T, S): scores and patterns."""
    return name.endswith(("attn.hook_attn_scores", "attn.hook_pattern"))


def row_shape(spec: ModelSpec, name: str) -> tuple[int, ...]:
    """The shape that a tap or a result has for one token: its letters without T or n; of S the largest."""
    sizes = {
        "C": spec.dim,
        "1": 1,
        "H": spec.n_heads,
        "K": spec.n_kv_heads,
        "D": spec.head_dim,
        "F": spec.hidden_dim,
        "V": spec.vocab_size,
        "S": spec.max_context,
        "E": spec.moe.n_experts if spec.moe else 0,
        "k": spec.moe.n_experts_per_token if spec.moe else 0,
    }
    return tuple(sizes[letter] for letter in _letters(spec)[name] if letter not in ("T", "n"))


@lru_cache(maxsize=8)
def _letters(spec: ModelSpec) -> dict[str, list[str]]:
    results = {f"blocks.{i}.{RESULT}": ["T", "H", "C"] for i in range(spec.n_layers)}
    return {tap.name: tap.shape.split() for tap in taps(spec)} | results


def _inside(prefix: str, entries: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [(f"{prefix}.{name}", shape, text) for name, shape, text in entries]
