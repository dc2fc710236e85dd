"""What a Llama, a Mistral or a Mixtral is, as numbers.

All of them are one architecture: a decoder of `n_layers` equal blocks (RMSNorm, rotary
attention with grouped heads, RMSNorm, SwiGLU) between an embedding and an unembedding.
They differ in sizes, in the rotary scaling (`RopeSpec`), in a window over the past
(`sliding_window`, Mistral 7B v0.1) and in whether the SwiGLU is one or several of which a
router picks a few for each token (`MoeSpec`, Mixtral).

Letters used for shapes everywhere: B batch, T tokens, S cached positions, C dim, H heads,
K kv heads, D head_dim, F hidden_dim, E experts, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vitral.errors import SpecError

__all__ = ["ModelSpec", "MoeSpec", "RopeScaling", "RopeSpec"]

RopeScaling = Literal["none", "linear", "dynamic", "yarn", "llama3", "factors"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: the base and how long contexts are scaled.

    `theta` is the base. `scaling` says which of the further fields count; those that do not
    are None:

    - none: plain (RoFormer, arXiv 2104.09864).
    - linear: positions divided by `factor` (arXiv 2306.15595).
    - dynamic: the base grows once the context is longer than `original_context` (NTK-aware).
    - yarn: `factor`, `original_context`, `beta_fast`, `beta_slow`, `attention_factor`
      (arXiv 2309.00071).
    - llama3: `factor`, `low_freq_factor`, `high_freq_factor`, `original_context` (Llama 3.1).
    - factors: each of the D/2 frequencies divided by its own number (GGUF `rope_freqs`).
    """

    theta: float
    scaling: RopeScaling
    factor: float | None = None
    original_context: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.scaling not in get_args(RopeScaling):
            raise SpecError(f"rope scaling is {self.scaling!r}; allowed: {', '.join(get_args(RopeScaling))}")
        _positive("rope theta", self.theta)
        needed = _ROPE_FIELDS[self.scaling]
        for name in _ROPE_OPTIONAL:
            value = getattr(self, name)
            if name in needed and value is None:
                raise SpecError(f"rope scaling {self.scaling!r} needs {name}, which is missing")
            if name not in needed and value is not None:
                raise SpecError(f"rope scaling {self.scaling!r} does not use {name}, which is {value!r}")
            if value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    _positive(f"rope {name}", number)
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise SpecError(f"rope low_freq_factor {low} must be below high_freq_factor {high}")


_ROPE_OPTIONAL = (
    "factor",
    "original_context",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "factors",
)
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_context"),
    "yarn": ("factor", "original_context", "beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
    "factors": ("factors",),
}


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts: `n_experts` feed-forward networks, of which each token uses a few.

    The first `n_leading_dense` blocks have one network and no router (Dai et al. 2024, arXiv 2401.06066, section
    4.1.2); in Mixtral there is none such.
    """

    n_experts: int
    n_experts_per_token: int
    n_leading_dense: int = 0

    def __post_init__(self) -> None:
        _count("n_experts", self.n_experts, 65_536)
        _count("n_experts_per_token", self.n_experts_per_token, 65_536)
        if self.n_experts_per_token > self.n_experts:
            raise SpecError(
                f"n_experts_per_token is {self.n_experts_per_token} but there are only {self.n_experts} experts"
            )
        if (
            isinstance(self.n_leading_dense, bool)
            or not isinstance(self.n_leading_dense, int)
            or self.n_leading_dense < 0
        ):
            raise SpecError(f"n_leading_dense is {self.n_leading_dense!r}; allowed: a whole number from 0")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The architecture of one model; facts have no defaults.

    `max_context` is the longest sequence the model was made for, in tokens. `sliding_window`
    is how many positions a token sees, itself included, or None for all. `tied_embeddings`
    says that the unembedding is the embedding.

    Raises SpecError where the numbers contradict each other.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float
    max_context: int
    rope: RopeSpec
    sliding_window: int | None
    tied_embeddings: bool
    moe: MoeSpec | None

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            _count(name, getattr(self, name), largest)
        if self.n_heads % self.n_kv_heads:
            raise SpecError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise SpecError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        if not 0.0 < self.norm_eps < 1.0:
            raise SpecError(f"norm_eps is {self.norm_eps!r}; allowed: between 0 and 1")
        if self.sliding_window is not None:
            _count("sliding_window", self.sliding_window, _LARGEST["max_context"])
        if self.moe is not None and self.n_layers * self.moe.n_experts > _MOST_EXPERTS:
            raise SpecError(
                f"{self.n_layers} layers of {self.moe.n_experts} experts are {self.n_layers * self.moe.n_experts}; "
                f"at most {_MOST_EXPERTS} are allowed"
            )
        if self.moe is not None and self.moe.n_leading_dense >= self.n_layers:
            raise SpecError(
                f"{self.moe.n_leading_dense} of {self.n_layers} layers are dense; a mixture has experts in some"
            )
        if self.rope.factors is not None and len(self.rope.factors) != self.head_dim // 2:
            raise SpecError(
                f"rope has {len(self.rope.factors)} frequency factors; head_dim {self.head_dim} wants {self.head_dim // 2}"
            )

    @property
    def heads_per_kv_head(self) -> int:
        """How many query heads read one key/value head."""
        return self.n_heads // self.n_kv_heads

    def moe_of(self, layer: int) -> MoeSpec | None:
        """The mixture that a layer, from 0, has in place of one feed-forward network; None where it has none."""
        return self.moe if self.moe is not None and layer >= self.moe.n_leading_dense else None

    @property
    def mixture_layers(self) -> range:
        """The layers that have experts."""
        return range(self.moe.n_leading_dense if self.moe is not None else self.n_layers, self.n_layers)


_MOST_EXPERTS = 1 << 14  # in all layers: each has tensors with names; Mixtral 8x22B has 448
# Far above any model of these families; below what would overflow a product of two.
_LARGEST = {
    "dim": 1 << 20,
    "n_layers": 4096,
    "n_heads": 4096,
    "n_kv_heads": 4096,
    "head_dim": 4096,
    "hidden_dim": 1 << 22,
    "vocab_size": 1 << 24,
    "max_context": 1 << 27,
}


def _count(name: str, value: object, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise SpecError(f"{name} is {value!r}; allowed: a whole number from 1 to {largest}")


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise SpecError(f"{name} is {value!r}; allowed: a finite number above 0")
