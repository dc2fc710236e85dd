"""What changed between two files of one model: quantised and original, before and after tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.attention import head_scores
from vitral.lens.finding import Finding
from vitral.lens.glass import Glass, Values
from vitral.lens.logit_lens import commitment_layer, logit_lens
from vitral.lens.statistics import Interval, bootstrap, log_softmax

__all__ = ["Drift", "MovedHead", "MovedToken", "drift"]

NAMES = (
    "blocks.0.hook_resid_pre",
    "*.hook_resid_post",
    "*.attn.hook_pattern",
    "unembed.hook_out",
)


@dataclass(frozen=True, slots=True)
class MovedToken(Finding):
    """What a place predicts in A and in B.

    kl: KL(A || B), nats. logit: largest difference of a logit. best_a, best_b: likeliest ids. commitment:
    the lens layer from which each model's own answer stands, A's and B's. flips: experts that differ, over all layers.
    """

    position: int
    id: int
    kl: float
    logit: float
    best_a: int
    best_b: int
    commitment_a: int
    commitment_b: int
    flips: int


@dataclass(frozen=True, slots=True)
class MovedHead(Finding):
    """How far a head's pattern moved: mean total variation of its rows, in [0, 1]; and its induction scores."""

    layer: int
    head: int
    distance: float
    induction_a: float
    induction_b: float


@dataclass(frozen=True, slots=True)
class Drift(Finding):
    """B beside A, over one text.

    kl: mean KL(A || B) with its interval, nats per token. changed: places whose likeliest token differs.
    routes, flips: expert choices compared, and those of A that B did not make, whole numbers; 0 for a dense model.
    flips_by_layer: (L,). tokens and heads: worst first. residual: relative distance of the residual
    stream after each block, (L,).
    """

    n_tokens: int
    same: bool
    kl: Interval
    largest_logit: float
    changed: int
    routes: int
    flips: int
    flips_by_layer: NDArray[np.int64]
    residual: NDArray[np.float64]
    tokens: tuple[MovedToken, ...]
    heads: tuple[MovedHead, ...]


def drift(a: Glass, b: Glass, ids: Sequence[int], *, worst: int = 10) -> Drift:
    """Run both on the same ids and compare every stage. Raises RequestError for two different architectures."""
    if a.spec != b.spec:
        raise RequestError("the two are not one model: their architectures differ; `vitral diff` says in what")
    names = [*NAMES, *(["*.hook_expert_indices"] if a.spec.moe else [])]
    va, vb = a.run(ids, names), b.run(ids, names)
    la, lb = _logits(va), _logits(vb)
    pa, pb = log_softmax(la), log_softmax(lb)
    kl = np.maximum((np.exp(pa) * (pa - pb)).sum(axis=-1), 0)  # (T,)
    moved = np.abs(la - lb).max(axis=-1)  # (T,)
    best_a, best_b = la.argmax(axis=-1), lb.argmax(axis=-1)
    commitment = [commitment_layer(logit_lens(v, g.weights, top=1).ranks) for v, g in ((va, a), (vb, b))]
    flips = _flips(va, vb, a.spec.n_layers, len(ids)) if a.spec.moe else np.zeros((a.spec.n_layers, len(ids)), np.int64)
    order = np.argsort(-kl, kind="stable")[:worst]
    tokens = tuple(
        MovedToken(
            int(t),
            int(ids[t]),
            float(kl[t]),
            float(moved[t]),
            int(best_a[t]),
            int(best_b[t]),
            int(commitment[0][t]),
            int(commitment[1][t]),
            int(flips[:, t].sum()),
        )
        for t in order
    )
    k = a.spec.moe.n_experts_per_token if a.spec.moe else 0
    return Drift(
        len(ids),
        bool(all(np.array_equal(va[name], vb[name]) for name in va)),
        bootstrap(kl),
        float(moved.max()),
        int((best_a != best_b).sum()),
        k * len(ids) * len(a.spec.mixture_layers),
        int(flips.sum()),
        flips.sum(axis=1),
        _residual(va, vb, a.spec.n_layers),
        tokens,
        _heads(va, vb, ids, worst),
    )


def _logits(values: Values) -> NDArray[np.float64]:
    return np.asarray(values["unembed.hook_out"], np.float64)


def _flips(a: Values, b: Values, n_layers: int, T: int) -> NDArray[np.int64]:
    """Experts that A chose and B did not, (L, T)."""
    found = np.zeros((n_layers, T), np.int64)
    for i in range(n_layers):
        if f"blocks.{i}.mlp.hook_expert_indices" not in a:
            continue  # a layer without experts
        ours, theirs = (np.asarray(v[f"blocks.{i}.mlp.hook_expert_indices"]) for v in (a, b))
        found[i] = (~(ours[:, :, None] == theirs[:, None, :]).any(axis=-1)).sum(axis=-1)
    return found


def _residual(a: Values, b: Values, n_layers: int) -> NDArray[np.float64]:
    """|a - b| / |a| of the residual stream after each block, mean over tokens."""
    found = []
    for i in range(n_layers):
        x, y = (np.asarray(v[f"blocks.{i}.hook_resid_post"], np.float64) for v in (a, b))
        size = np.maximum(np.linalg.norm(x, axis=-1), np.finfo(np.float64).tiny)
        found.append((np.linalg.norm(x - y, axis=-1) / size).mean())
    return np.asarray(found)


def _heads(a: Values, b: Values, ids: Sequence[int], worst: int) -> tuple[MovedHead, ...]:
    scores = [head_scores(v, ids).induction for v in (a, b)]
    n_layers = len(scores[0])
    distance = np.stack(
        [
            np.abs(np.asarray(a[name], np.float64) - np.asarray(b[name], np.float64)).sum(axis=-1).mean(axis=-1) / 2
            for name in (f"blocks.{i}.attn.hook_pattern" for i in range(n_layers))
        ]
    )  # (L, H)
    order = np.argsort(-distance.reshape(-1), kind="stable")[:worst]
    places = [(int(i) // distance.shape[1], int(i) % distance.shape[1]) for i in order]
    return tuple(MovedHead(*p, float(distance[p]), float(scores[0][p]), float(scores[1][p])) for p in places)
