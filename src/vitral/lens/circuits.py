"""What heads and neurons do by their weights alone, on quantised models too.

No prompt is run. That a circuit could copy does not mean that it does: `vitral.lens.attention` and
a knock-out say whether it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.finding import Finding
from vitral.lens.glass import Values
from vitral.lens.statistics import Interval, bootstrap
from vitral.lens.weights import WeightView
from vitral.model import law

__all__ = [
    "CopyScore",
    "Direction",
    "Neighbours",
    "copy_scores",
    "copying_score",
    "neighbours",
    "ov_circuit",
    "qk_circuit",
    "singular_directions",
]

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Neighbours(Finding):
    """The tokens that a direction raises most and lowers most, with their logits."""

    raised: tuple[tuple[int, float], ...]
    lowered: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Direction(Finding):
    """One singular direction of a head's OV circuit: it reads `reads` (C,) and writes `writes` (C,)."""

    value: float
    reads: F64
    writes: F64
    tokens: Neighbours


@dataclass(frozen=True, slots=True)
class CopyScore(Finding):
    """How often a head would say the token that it attends to, in [0, 1]; `control`: another token of the prompt."""

    layer: int
    head: int
    score: Interval
    control: Interval


def ov_circuit(weights: WeightView, layer: int, head: int) -> tuple[F64, F64]:
    """`W_V` and `W_O` of a head, (C, D) and (D, C); their product (C, C) is what attending moves.

    The gain of the norm before attention is folded into W_V. Elhage et al. 2021, "A Mathematical
    Framework for Transformer Circuits". The factors are given, since C x C has rank D.
    """
    gain = weights.gain(f"blocks.{layer}.ln1").astype(np.float64)
    return gain[:, None] * weights.W_V(layer, head), weights.W_O(layer, head).astype(np.float64)


def qk_circuit(weights: WeightView, layer: int, head: int, distance: int = 0) -> tuple[F64, F64]:
    """Factors (C, D) and (D, C) of the bilinear form that scores a key `distance` tokens back.

    score = a W_Q R(distance) W_K' b' / sqrt(D) for normed residual rows a (query) and b (key), R the
    rotation between the two places; gains are folded in. Elhage et al. 2021; rotary: arXiv 2104.09864.
    """
    from vitral.model import rope

    spec = weights.spec
    if distance < 0:
        raise RequestError(f"a key {-distance} tokens ahead cannot be attended to; distance is 0 or more")
    gain = weights.gain(f"blocks.{layer}.ln1").astype(np.float64)[:, None]
    query, key = gain * weights.W_Q(layer, head), gain * weights.W_K(layer, head)
    cos, sin = rope.tables(spec, distance + 1, spec.max_context)
    turned = rope.rotate(query.astype(np.float32)[:, None, :], cos[distance:], sin[distance:])[:, 0]
    still = rope.rotate(key.astype(np.float32)[:, None, :], cos[:1], sin[:1])[:, 0]  # some scalings scale place 0 too
    return turned.astype(np.float64) / np.sqrt(spec.head_dim), still.astype(np.float64).T


def singular_directions(weights: WeightView, layer: int, head: int, n: int = 3, top: int = 5) -> list[Direction]:
    """The n strongest directions of a head's OV circuit, and the tokens that each writes.

    W_V W_O = U S V'. By QR of both factors, so that the work is that of a D x D matrix. Millidge and
    Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices".
    """
    left, right = ov_circuit(weights, layer, head)  # (C, D), (D, C)
    q1, r1 = np.linalg.qr(left)
    q2, r2 = np.linalg.qr(right.T)
    u, s, v = np.linalg.svd(r1 @ r2.T)
    return [
        Direction(float(s[i]), q1 @ u[:, i], q2 @ v[i], neighbours(weights, q2 @ v[i], top))
        for i in range(min(n, len(s)))
    ]


def neighbours(weights: WeightView, direction: NDArray[np.floating], top: int = 5) -> Neighbours:
    """The tokens whose logits a residual direction (C,) raises and lowers most: (direction * gain) W_U."""
    if direction.shape != (weights.spec.dim,):
        raise RequestError(
            f"a direction of shape {direction.shape}; the residual stream has {weights.spec.dim} numbers"
        )
    logits = (direction * weights.gain("ln_final")).astype(np.float32) @ weights.W_U()
    order = np.argsort(-logits, kind="stable")

    def named(ids: NDArray[np.intp]) -> tuple[tuple[int, float], ...]:
        return tuple((int(i), float(logits[i])) for i in ids)

    return Neighbours(named(order[:top]), named(order[::-1][:top]))


def copying_score(weights: WeightView, layer: int, head: int) -> float:
    """Sum of the eigenvalues of the full OV circuit W_E W_V W_O W_U over the sum of their sizes, in [-1, 1].

    Near 1: attending to a token raises that token. The eigenvalues are those of the D x D matrix
    W_O W_U W_E W_V, the others being 0. Elhage et al. 2021, "Summarizing OV/QK matrices". The final gain is folded in.
    """
    left, right = ov_circuit(weights, layer, head)
    gain = weights.gain("ln_final").astype(np.float64)
    embed = weights.matrix("embed.weight")
    # (D, C) (C, V) (V, C) (C, D), the vocabulary summed first
    middle = weights.W_U().astype(np.float32) @ embed  # (C, C)
    values = np.linalg.eigvals((right * gain) @ middle @ left)
    return float(values.sum().real / np.abs(values).sum())


def copy_scores(
    values: Values,
    weights: WeightView,
    ids: Sequence[int],
    heads: Sequence[tuple[int, int]],
    *,
    top: int = 5,
    seed: int = 0,
) -> list[CopyScore]:
    """For each (layer, head): of a prompt's tokens, the share that it would put among the `top` likeliest.

    As if it attended to that token alone: the residual stream after the first block (`blocks.0.hook_resid_post`, T rows)
    through the norm, W_V and W_O of the head, then final norm and unembedding (arXiv 2211.00593, "copy score"). The
    control asks the same for a token of another place, drawn by `seed`. Cost: the unembedding once for each head.
    RequestError without that value, or for a prompt of one kind of token.
    """
    name = "blocks.0.hook_resid_post"
    if name not in values or len(values[name]) != len(ids):
        raise RequestError(f"copy scores want {name} of each of the {len(ids)} ids; record it")
    if len(set(ids)) < 2:
        raise RequestError("the prompt has one kind of token, so that there is no other to compare with; give another")
    own = np.asarray(ids)
    rng = np.random.default_rng(seed)
    other = np.array([rng.choice(own[own != id]) for id in own])
    stream = np.asarray(values[name], np.float32)
    stream = stream / law.rms_scale(stream, weights.spec.norm_eps)
    found = []
    for layer, head in heads:
        reads, writes = ov_circuit(weights, layer, head)  # the gain of the norm is in W_V
        logits = weights.unembedding.logits((stream @ reads @ writes).astype(np.float32))  # (T, V)
        hits = []
        for which in (own, other):
            least = logits[np.arange(len(own)), which][:, None]
            hits.append(bootstrap(((logits > least).sum(axis=1) < top).astype(np.float64), seed=seed))
        found.append(CopyScore(layer, head, hits[0], hits[1]))
    return found
