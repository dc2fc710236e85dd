"""The forward pass in torch: what `model/reference.py` computes, differentiable.

Parameters have the names of `model/names.py`, values that pass `tap` those of `model/taps.py`. A batch
is one row of T tokens in which sequences stand side by side (`Packed`); none sees another, and nothing
is padding. Read it from `Transformer.forward` down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.model import rope
from vitral.model.spec import ModelSpec

__all__ = ["Linear", "Packed", "Taps", "Transformer", "load_model"]


@dataclass(frozen=True)
class Packed:
    """Sequences side by side: ids (T,) int64, and the length of each sequence in order.

    >>> packed = Packed.of([[5, 6, 7], [8, 9]])
    >>> packed.positions.tolist()
    [0, 1, 2, 0, 1]
    >>> packed.mask(None).int().tolist()[3]
    [0, 0, 0, 1, 0]
    """

    ids: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or sum(self.lengths) != len(self.ids) or min(self.lengths, default=0) < 1:
            raise ValueError(f"lengths {self.lengths} are not sequences of ids of shape {tuple(self.ids.shape)}")

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Packed:
        """Lists of ids as one row."""
        return cls(torch.tensor([id for ids in sequences for id in ids]), tuple(map(len, sequences)))

    @cached_property
    def positions(self) -> Tensor:
        """Place of each token in its own sequence, (T,)."""
        return torch.cat([torch.arange(n) for n in self.lengths])

    @cached_property
    def owners(self) -> Tensor:
        """Number of the sequence that each token belongs to, (T,)."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))

    def mask(self, window: int | None) -> Tensor:
        """Whether a token (row) sees another (column), (T, T): of its own sequence, not later, inside the window."""
        back = self.positions[:, None] - self.positions
        return (self.owners[:, None] == self.owners) & (back >= 0) & (back < (window or len(self.ids)))


class Taps:
    """Shows named values to `on_tap`, whose return, unless None, replaces the value; `only` names those wanted."""

    def __init__(
        self, on_tap: Callable[[str, Tensor], Tensor | None] | None = None, only: Callable[[str], bool] | None = None
    ) -> None:
        self.on_tap = on_tap
        self.only = only

    def wants(self, name: str) -> bool:
        """Whether the value of this name is looked at."""
        return self.on_tap is not None and (self.only is None or self.only(name))

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if self.on_tap is None or not self.wants(name):
            return value
        seen = self.on_tap(name, value)
        return value if seen is None else seen


NO_TAPS = Taps()


class Linear(nn.Module):
    """`x @ weight.T`; an adapter, where there is one, computes in its stead (`tune/adapters.py`)."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:  # (T, in) -> (T, out)
        if self.adapter is None:
            return F.linear(x, self.weight)
        adapted: Tensor = self.adapter(x, self.weight)
        return adapted


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467): divide by the root of the mean square, times a learned gain."""

    def __init__(self, name: str, out: str, dim: int, eps: float) -> None:
        super().__init__()
        self.name, self.out, self.eps = name, out, eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, tap: Taps) -> Tensor:
        scale = torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        x = tap(self.name + ".hook_normalized", x / tap(self.name + ".hook_scale", scale))
        return tap(self.out, x * self.weight)


class Attention(nn.Module):
    """Rotary attention in which several query heads share a key/value head (arXiv 2305.13245)."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        super().__init__()
        self.name, self.spec = name, spec
        queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        self.q, self.k, self.v = Linear(queries, spec.dim), Linear(keys, spec.dim), Linear(keys, spec.dim)
        self.o = Linear(spec.dim, queries)

    def forward(self, x: Tensor, packed: Packed, cos: Tensor, sin: Tensor, tap: Taps) -> Tensor:
        name, D = self.name, self.spec.head_dim
        q = tap(name + "hook_q", self.q(x).view(len(x), -1, D))  # (T, H, D)
        k = tap(name + "hook_k", self.k(x).view(len(x), -1, D))  # (T, K, D)
        v = tap(name + "hook_v", self.v(x).view(len(x), -1, D))  # (T, K, D)
        q = tap(name + "hook_rot_q", _rotate(q, cos, sin).to(v.dtype))
        k = tap(name + "hook_rot_k", _rotate(k, cos, sin).to(v.dtype))
        seen = tap.wants(name + "hook_attn_scores") or tap.wants(name + "hook_pattern")
        z = (self._in_the_open if seen else self._fused)(q, k, v, packed, tap)
        out: Tensor = self.o(tap(name + "hook_z", z).reshape(len(x), -1))
        return out

    def _in_the_open(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, tap: Taps) -> Tensor:
        """Scores and pattern as values, under the block mask of all sequences together."""
        group = self.spec.heads_per_kv_head
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))  # (T, H, D)
        scores = torch.einsum("thd,shd->hts", q, k) * (1 / math.sqrt(self.spec.head_dim))
        scores = scores.masked_fill(~packed.mask(self.spec.sliding_window), -math.inf)
        scores = tap(self.name + "hook_attn_scores", scores)
        pattern = tap(self.name + "hook_pattern", scores.softmax(-1))
        return torch.einsum("hts,shd->thd", pattern, v)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, tap: Taps) -> Tensor:
        """The same block by block: torch's fused kernel for each sequence, or for all if they are as long."""
        n = packed.lengths[0]
        if len(set(packed.lengths)) == 1:
            return self._kernel(*(x.view(-1, n, *x.shape[1:]) for x in (q, k, v))).flatten(0, 1)
        parts = zip(*(torch.split(x, list(packed.lengths)) for x in (q, k, v)), strict=True)
        return torch.cat([self._kernel(*(x[None] for x in part))[0] for part in parts])

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of B sequences of one length, (B, T, H or K, D) to (B, T, H, D)."""
        T, window = q.shape[1], self.spec.sliding_window
        band = None
        if window is not None and window < T:
            band = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        shared = self.spec.heads_per_kv_head > 1
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=band, is_causal=band is None, enable_gqa=shared)
        return z.transpose(1, 2)


class Swiglu(nn.Module):
    """Gated feed-forward network (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        super().__init__()
        self.name = name
        self.gate, self.up = Linear(spec.hidden_dim, spec.dim), Linear(spec.hidden_dim, spec.dim)
        self.down = Linear(spec.dim, spec.hidden_dim)

    def forward(self, x: Tensor, tap: Taps) -> Tensor:
        gate = tap(self.name + "hook_pre", self.gate(x))
        up = tap(self.name + "hook_pre_linear", self.up(x))
        out: Tensor = self.down(tap(self.name + "hook_post", F.silu(gate) * up))
        return out


class Mixture(nn.Module):
    """Sparse mixture of experts (Mixtral, arXiv 2401.04088): a router picks a few for each token."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.moe is not None
        self.name, self.n_chosen = name, spec.moe.n_experts_per_token
        self.run_idle_experts = False  # on no tokens: their gradients are zeros then, where there would be none
        self.router = Linear(spec.moe.n_experts, spec.dim)
        self.experts = nn.ModuleList(Swiglu(f"{name}experts.{e}.", spec) for e in range(spec.moe.n_experts))

    def forward(self, x: Tensor, tap: Taps) -> Tensor:
        name = self.name
        with torch.autocast(
            x.device.type, enabled=False
        ):  # a rounded router would choose other experts than the engine
            logits = tap(name + "hook_router_logits", self.router(x))  # (T, E)
        probs = tap(name + "hook_router_probs", logits.softmax(-1))
        # of equals the lower number wins, as in the law; torch.topk promises nothing
        chosen = tap(name + "hook_expert_indices", (-probs).argsort(dim=-1, stable=True)[:, : self.n_chosen])
        share = probs.gather(-1, chosen)
        share = tap(name + "hook_expert_weights_topk", share / share.sum(-1, keepdim=True))  # (T, k)
        mixed = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, rank = (chosen == e).nonzero(as_tuple=True)
            if len(token) or self.run_idle_experts:
                out = tap(f"{name}experts.{e}.hook_out", expert(x[token], tap))
                mixed = mixed.index_add(0, token, (out * share[token, rank, None]).to(mixed.dtype))
        return mixed


class Block(nn.Module):
    """Attention, then the feed-forward part, each added to the residual stream."""

    def __init__(self, i: int, spec: ModelSpec) -> None:
        super().__init__()
        self.name = name = f"blocks.{i}."
        self.ln1 = Norm(name + "ln1", name + "attn.hook_in", spec.dim, spec.norm_eps)
        self.attn = Attention(name + "attn.", spec)
        self.ln2 = Norm(name + "ln2", name + "mlp.hook_in", spec.dim, spec.norm_eps)
        self.mlp = Swiglu(name + "mlp.", spec) if spec.moe_of(i) is None else Mixture(name + "mlp.", spec)

    def forward(self, x: Tensor, packed: Packed, cos: Tensor, sin: Tensor, tap: Taps) -> Tensor:
        x = tap(self.name + "hook_resid_pre", x)
        x = x + tap(self.name + "hook_attn_out", self.attn(self.ln1(x, tap), packed, cos, sin, tap))
        x = tap(self.name + "hook_resid_mid", x)
        x = x + tap(self.name + "hook_mlp_out", self.mlp(self.ln2(x, tap), tap))
        return tap(self.name + "hook_resid_post", x)


class _Table(nn.Module):
    """A matrix with a name; the embedding reads its rows."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))


class Transformer(nn.Module):
    """A model to be trained. `recompute_activations` trades a second forward pass of each block for memory.

    Parameters hold nothing of use until they are loaded: see `load_model`. `context_length` (tokens)
    counts for the rotary scaling `dynamic` alone.
    """

    def __init__(self, spec: ModelSpec, context_length: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.context_length = context_length or spec.max_context
        self.recompute_activations = False
        self.embed = _Table(spec.vocab_size, spec.dim)
        self.blocks = nn.ModuleList(Block(i, spec) for i in range(spec.n_layers))
        self.ln_final = Norm("ln_final", "unembed.hook_in", spec.dim, spec.norm_eps)
        if not spec.tied_embeddings:
            self.unembed = Linear(spec.vocab_size, spec.dim)
        self._turns: tuple[Tensor, Tensor] | None = None

    def forward(self, packed: Packed, tap: Taps = NO_TAPS) -> Tensor:
        """What the unembedding reads, (T, C); `project` makes logits of the rows that are wanted."""
        x = F.embedding(packed.ids, self.embed.weight)  # (T, C)
        x = tap("hook_embed", x if x.dtype == torch.float64 else x.float())  # the residual stream is never narrow
        cos, sin = (table[packed.positions].to(x.dtype) for table in self._tables(max(packed.lengths)))
        for block in self.blocks:
            if self.recompute_activations and self.training:
                x = recompute(block, x, packed, cos, sin, tap, use_reentrant=False)
            else:
                x = block(x, packed, cos, sin, tap)
        final: Tensor = self.ln_final(x, tap)
        return final

    def project(self, hidden: Tensor, tap: Taps = NO_TAPS) -> Tensor:
        """Logits (N, V) of rows (N, C) of what `forward` gave."""
        logits = F.linear(hidden, self.embed.weight) if self.spec.tied_embeddings else self.unembed(hidden)
        return tap("unembed.hook_out", logits)

    def logits(self, packed: Packed, tap: Taps = NO_TAPS) -> Tensor:
        """Logits (T, V) of every token."""
        return self.project(self(packed, tap), tap)

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every matrix product by the name of its place, such as `blocks.0.attn.q`."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield name, module

    def _tables(self, n: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least n positions, kept."""
        if self._turns is None or len(self._turns[0]) < n:
            cos, sin = rope.tables(self.spec, n, self.context_length)
            self._turns = torch.from_numpy(cos), torch.from_numpy(sin)
        return self._turns


def load_model(source: Checkpoint | Path | str, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model from any readable checkpoint; quantised weights become the very values that are served.

    Nothing is trainable yet: `adapters.attach` or `train_all` choose. Raises what `open_checkpoint` raises.
    """
    found = source if isinstance(source, Checkpoint) else open_checkpoint(Path(source))
    with torch.device("meta"):
        model = Transformer(found.spec)
    state = {name: torch.tensor(found.weights.take(name).dequantize()).to(dtype) for name in found.weights}
    found.weights.finish()
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (d, d + D / 2) of x (T, heads, D) by the rows of cos and sin (T, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
