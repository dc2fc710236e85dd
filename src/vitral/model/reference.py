"""The forward pass in NumPy: what a Llama, a Mistral and a Mixtral do, and the law for all kernels.

Read it from `Reference.forward` down. Sizes are in `spec.py`, the order of every float operation
in `law.py`, the names of the values that pass `tap` in `taps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitral.model import law, rope
from vitral.model.law import F32, KvType, LowRank, Quantised
from vitral.model.spec import ModelSpec

__all__ = ["Cache", "OnTap", "Reference"]

OnTap = Callable[[str, NDArray[np.generic]], NDArray[np.generic] | None]
"""Sees a value by its name; what it returns, unless None, replaces the value."""

A = TypeVar("A", bound=np.generic)


class Cache:
    """Keys and values of the positions so far, for each layer (K, S, D), kept as `kv_type` (`law.kept`)."""

    def __init__(self, spec: ModelSpec, kv_type: KvType = "f32") -> None:
        self.kv_type = kv_type
        nothing = np.zeros((spec.n_kv_heads, 0, spec.head_dim), np.float32)
        self.keys = [nothing] * spec.n_layers
        self.values = [nothing] * spec.n_layers

    def __len__(self) -> int:
        return int(self.keys[0].shape[1])

    def extend(self, layer: int, k: F32, v: F32) -> tuple[F32, F32]:
        """Add keys and values (T, K, D); return all of the layer's, (K, S, D)."""
        k, v = law.kept(k, v, self.kv_type)
        self.keys[layer] = np.concatenate([self.keys[layer], k.swapaxes(0, 1)], axis=1)
        self.values[layer] = np.concatenate([self.values[layer], v.swapaxes(0, 1)], axis=1)
        return self.keys[layer], self.values[layer]


class Reference:
    """A model as the law computes it: slow, plain, right to the bit.

    `weights` has every tensor of `names.tensor_shapes(spec)`, each a float32 array or a Quantised.
    `context_length` (tokens) counts for the rotary scaling `dynamic` alone. `adapter` has what a LoRA
    adapter adds, by the names of the matrices.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Quantised | F32],
        context_length: int | None = None,
        adapter: Mapping[str, LowRank] | None = None,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.adapter = adapter or {}
        self.context_length = context_length or spec.max_context

    def forward(self, ids: Sequence[int], cache: Cache | None = None, on_tap: OnTap | None = None) -> F32:
        """Logits (T, V) of T tokens that follow what the cache holds; they are added to it."""
        spec = self.spec
        cache = Cache(spec) if cache is None else cache
        tap = _Taps(on_tap)
        start = len(cache)
        cos, sin = rope.tables(spec, start + len(ids), self.context_length)

        x = tap("hook_embed", self._embed(ids))  # (T, C)
        for i in range(spec.n_layers):
            block = f"blocks.{i}."
            x = tap(block + "hook_resid_pre", x)
            h = self._norm(block + "ln1", block + "attn.hook_in", x, tap)
            x = x + tap(block + "hook_attn_out", self._attention(i, h, cos[start:], sin[start:], cache, tap))
            x = tap(block + "hook_resid_mid", x)
            h = self._norm(block + "ln2", block + "mlp.hook_in", x, tap)
            feed = self._swiglu if spec.moe_of(i) is None else self._mixture
            x = x + tap(block + "hook_mlp_out", feed(block + "mlp.", h, tap))
            x = tap(block + "hook_resid_post", x)
        h = self._norm("ln_final", "unembed.hook_in", x, tap)
        unembed = "embed.weight" if spec.tied_embeddings else "unembed.weight"
        return tap("unembed.hook_out", law.linear(self.weights[unembed], h))

    def _embed(self, ids: Sequence[int]) -> F32:
        table = self.weights["embed.weight"]
        rows = np.asarray(ids, np.int64)
        return table.rows(rows).dequantize() if isinstance(table, Quantised) else table[rows]

    def _norm(self, name: str, out: str, x: F32, tap: _Taps) -> F32:
        """RMSNorm (arXiv 1910.07467): divide by the root of the mean square, times a learned gain."""
        scale = tap(name + ".hook_scale", law.rms_scale(x, self.spec.norm_eps))  # (T, 1)
        x = tap(name + ".hook_normalized", x * (np.float32(1) / scale))
        return tap(out, x * self._floats(name + ".weight"))

    def _attention(self, i: int, x: F32, cos: F32, sin: F32, cache: Cache, tap: _Taps) -> F32:
        """Rotary attention in which several query heads share a key/value head (arXiv 2305.13245)."""
        spec, name = self.spec, f"blocks.{i}.attn."
        T, S, D = len(x), len(cache.keys[i][0]) + len(x), spec.head_dim

        def heads(which: str) -> F32:
            return tap(f"{name}hook_{which}", self._product(f"{name}{which}.weight", x).reshape(T, -1, D))

        q, k, v = heads("q"), heads("k"), heads("v")  # (T, H, D), (T, K, D), (T, K, D)
        q = tap(name + "hook_rot_q", rope.rotate(q, cos, sin))
        k = tap(name + "hook_rot_k", rope.rotate(k, cos, sin))
        keys, values = cache.extend(i, k, v)  # (K, S, D)

        group = spec.heads_per_kv_head
        q = q.swapaxes(0, 1).reshape(spec.n_kv_heads, group, T, D)
        scores = law.attention_scores(q, keys[:, None], cache.kv_type)  # (K, H/K, T, S)
        scores = np.where(self._visible(T, S), scores, np.float32(-np.inf))
        scores = tap(name + "hook_attn_scores", scores.reshape(spec.n_heads, T, S))
        pattern = tap(name + "hook_pattern", law.softmax(scores))
        z = law.attention_z(pattern.reshape(-1, group, T, S), values[:, None], cache.kv_type)  # (K, H/K, T, D)
        z = tap(name + "hook_z", z.reshape(spec.n_heads, T, D).swapaxes(0, 1))
        return self._product(name + "o.weight", z.reshape(T, -1))

    def head_result(self, i: int, z: F32, head: int) -> F32:
        """What a head of block i adds to the residual stream, (T, C): W_O times z (T, H, D) with the other heads 0.

        Whoever replaces a head's result adds the new one less this one to `hook_attn_out`, head after head.
        """
        alone = np.zeros_like(z)
        alone[:, head] = z[:, head]
        return law.linear(self.weights[f"blocks.{i}.attn.o.weight"], alone.reshape(len(z), -1))

    def _visible(self, T: int, S: int) -> NDArray[np.bool_]:
        """Which of S positions each of the last T sees: itself and earlier ones, inside the window."""
        back = np.arange(S - T, S)[:, None] - np.arange(S)
        return (back >= 0) & (back < (self.spec.sliding_window or S))

    def _swiglu(self, name: str, x: F32, tap: _Taps) -> F32:
        """Gated feed-forward network (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""
        gate = tap(name + "hook_pre", self._product(name + "gate.weight", x))
        up = tap(name + "hook_pre_linear", self._product(name + "up.weight", x))
        post = tap(name + "hook_post", law.silu(gate) * up)  # (T, F)
        return self._product(name + "down.weight", post)

    def _mixture(self, name: str, x: F32, tap: _Taps) -> F32:
        """Sparse mixture of experts (Mixtral, arXiv 2401.04088): a router picks a few for each token."""
        assert self.spec.moe is not None
        logits = tap(name + "hook_router_logits", law.linear(self._floats(name + "router.weight"), x))  # (T, E)
        probs = tap(name + "hook_router_probs", law.softmax(logits))
        chosen = tap(name + "hook_expert_indices", law.top_k(probs, self.spec.moe.n_experts_per_token))  # (T, k)
        share = np.take_along_axis(probs, chosen, axis=-1)
        total = np.zeros(len(x), np.float32)
        for rank in range(share.shape[1]):
            total = total + share[:, rank]
        share = tap(name + "hook_expert_weights_topk", share / total[:, None])

        outputs = np.zeros((*chosen.shape, x.shape[1]), np.float32)  # (T, k, C)
        for e in np.unique(chosen):
            token, ranks = np.nonzero(chosen == e)
            expert = f"{name}experts.{e}."
            outputs[token, ranks] = tap(expert + "hook_out", self._swiglu(expert, x[token], tap))
        mixed = np.zeros_like(x)
        for rank in range(chosen.shape[1]):
            mixed = law.fma(share[:, rank, None], outputs[:, rank], mixed)
        return mixed

    def _product(self, name: str, x: F32) -> F32:
        """With a matrix, and with what the adapter adds to it."""
        out = law.linear(self.weights[name], x)
        return law.low_rank(self.adapter[name], x, out) if name in self.adapter else out

    def _floats(self, name: str) -> F32:
        weight = self.weights[name]
        return weight.dequantize() if isinstance(weight, Quantised) else weight


class _Taps:
    def __init__(self, on_tap: OnTap | None) -> None:
        self.on_tap = on_tap

    def __call__(self, name: str, value: NDArray[A]) -> NDArray[A]:
        if self.on_tap is None:
            return value
        seen = self.on_tap(name, value)
        if seen is None:
            return value
        if seen.shape != value.shape:
            raise ValueError(f"{name} has shape {value.shape}; its replacement has {seen.shape}")
        return seen.astype(value.dtype)
