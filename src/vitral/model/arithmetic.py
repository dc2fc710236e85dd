"""What a model costs, in closed form: parameters, operations, bytes.

Every figure follows from the ModelSpec and is checked against the list of tensors in the tests.
`total` is what has to be stored; `active` is what one token uses: with a mixture of experts, the
`n_experts_per_token` chosen experts of each layer instead of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitral.model.law import BLOCK, KV_DEFAULT, KvType
from vitral.model.spec import ModelSpec

__all__ = ["Parameters", "flops_per_token", "kv_bytes", "parameters", "weight_bytes"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers each part of the model holds; the layer parts are for all layers together."""

    embedding: int
    attention: int
    router: int
    feed_forward: int
    feed_forward_active: int
    norms: int
    unembedding: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self._outside_feed_forward + self.feed_forward

    @property
    def active(self) -> int:
        """The parameters that one token uses."""
        return self._outside_feed_forward + self.feed_forward_active

    @property
    def _outside_feed_forward(self) -> int:
        return self.embedding + self.attention + self.router + self.norms + self.unembedding


def parameters(spec: ModelSpec) -> Parameters:
    """Count the parameters of each part.

    >>> from vitral.model.presets import preset
    >>> count = parameters(preset("mixtral-8x7b"))
    >>> count.total, count.active
    (46702792704, 12879925248)
    """
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    swiglu = 3 * spec.dim * spec.hidden_dim
    stored, used = (spec.moe.n_experts, spec.moe.n_experts_per_token) if spec.moe else (1, 1)
    mixed = len(spec.mixture_layers)
    dense = spec.n_layers - mixed
    return Parameters(
        embedding=spec.vocab_size * spec.dim,
        attention=spec.n_layers * spec.dim * (2 * queries + 2 * keys),
        router=mixed * spec.dim * stored,
        feed_forward=(dense + mixed * stored) * swiglu,
        feed_forward_active=(dense + mixed * used) * swiglu,
        norms=(2 * spec.n_layers + 1) * spec.dim,
        unembedding=0 if spec.tied_embeddings else spec.vocab_size * spec.dim,
    )


def flops_per_token(spec: ModelSpec, context: int) -> int:
    """Floating-point operations of one token that sees `context` positions, itself included.

    A multiplication and an addition count as two. Counted are the matrix products and attention's
    two (scores and mix); norms, rotation and softmax are below a hundredth of them.
    """
    count = parameters(spec)
    matrices = count.attention + count.router + count.feed_forward_active + spec.vocab_size * spec.dim
    seen = min(context, spec.sliding_window or context)
    return 2 * matrices + 4 * spec.n_layers * spec.n_heads * spec.head_dim * seen


def weight_bytes(spec: ModelSpec, bits_per_weight: float) -> int:
    """Bytes of all matrices at `bits_per_weight` (F16 16, Q8_0 8.5, Q4_0 4.5) and the norms in float32.

    >>> from vitral.model.presets import preset
    >>> round(weight_bytes(preset("llama-2-7b"), 4.5) / 2**30, 2)
    3.53
    """
    count = parameters(spec)
    return round((count.total - count.norms) * bits_per_weight / 8) + 4 * count.norms


def kv_bytes(spec: ModelSpec, context: int, kv_type: KvType = KV_DEFAULT) -> int:
    """Bytes of the keys and values of `context` positions.

    >>> from vitral.model.presets import preset
    >>> kv_bytes(preset("mistral-7b-v0.3"), 1)
    131072
    >>> kv_bytes(preset("mistral-7b-v0.3"), 1, "q8_0")  # a byte a value, a scale of two bytes for each 32
    69632
    """
    D = spec.head_dim
    row = {"f32": 4 * D, "f16": 2 * D, "bf16": 2 * D, "q8_0": -(-D // 16) * 16 + -(-D // BLOCK) * 2}[kv_type]
    return 2 * spec.n_layers * spec.n_kv_heads * context * row
