"""Who the experts are: how the router uses them, and what changes without one.

All functions take routes of one layer: the chosen experts (T, k), best first, as
`hook_expert_indices` has them, of one prompt or of many put after one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.finding import Finding
from vitral.lens.statistics import Interval, bootstrap

__all__ = [
    "ExpertEffect",
    "Load",
    "agreement",
    "coactivation",
    "cut_margin",
    "domain_specialisation",
    "expert_effects",
    "load",
    "repetition",
    "vocabulary_specialisation",
]

Routes = NDArray[np.integer]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Load(Finding):
    """How a layer spreads its tokens over E experts.

    counts: selections of each, (E,). share: of all selections, (E,). entropy: H(share) / ln E in [0, 1].
    effective: exp(H), experts. imbalance: largest share over the mean. dead: experts that were never chosen.
    """

    counts: NDArray[np.int64]
    share: F64
    entropy: float
    effective: float
    imbalance: float
    dead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertEffect(Finding):
    """What silencing one expert costs each domain: the rise of its loss, nats per token."""

    layer: int
    expert: int
    rise: Mapping[str, Interval]


def load(routes: Routes, n_experts: int) -> Load:
    """Load, entropy and imbalance of the chosen experts (T, k).

    >>> load(np.array([[0, 1], [0, 2]]), 4).counts.tolist()
    [2, 1, 1, 0]
    """
    _check(routes, n_experts)
    counts = np.bincount(routes.reshape(-1), minlength=n_experts).astype(np.int64)
    share = counts / counts.sum()
    entropy = float(-(share * np.log(np.where(share > 0, share, 1))).sum())
    return Load(
        counts,
        share,
        entropy / float(np.log(n_experts)) if n_experts > 1 else 1.0,
        float(np.exp(entropy)),
        float(share.max() * n_experts),
        tuple(int(e) for e in np.flatnonzero(counts == 0)),
    )


def cut_margin(probabilities: NDArray[np.floating], k: int) -> F64:
    """p of the last chosen expert less p of the first not chosen, (T,): how near a token is to another route."""
    if not 1 <= k < probabilities.shape[-1]:
        raise RequestError(f"the cut after {k} of {probabilities.shape[-1]} experts; allowed: 1 to one less than all")
    ordered = np.sort(probabilities.astype(np.float64), axis=-1)[:, ::-1]
    return np.asarray(ordered[:, k - 1] - ordered[:, k])


def agreement(a: Routes, b: Routes) -> F64:
    """|E_a and E_b| / k for each token, (T,). Over checkpoints of one training: router saturation (OLMoE, eq. 5).

    Between a file and its quantised one: router agreement. By chance k / E.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise RequestError(f"routes of shapes {a.shape} and {b.shape}; both must be (T, k) of the same tokens")
    return np.asarray((a[:, :, None] == b[:, None, :]).any(axis=-1).mean(axis=-1))


def coactivation(routes: Routes, n_experts: int) -> F64:
    """N_ij / N_i, (E, E): of the tokens of expert i, the share that went to j too (OLMoE, eq. 6, all pairs).

    The diagonal is 1; rows of experts that were never chosen are 0.
    """
    _check(routes, n_experts)
    chosen = np.zeros((len(routes), n_experts))
    np.put_along_axis(chosen, routes.astype(np.int64), 1, axis=1)
    pairs = chosen.T @ chosen
    return np.asarray(pairs / np.maximum(np.diag(pairs), 1)[:, None])


def domain_specialisation(routes: Mapping[str, Routes], n_experts: int) -> dict[str, F64]:
    """N_(e, D) / N_D for each domain, (E,): the share of its tokens that reach an expert (OLMoE, eq. 7).

    Evenly spread: k / E.
    """
    return {name: load(one, n_experts).counts / len(one) for name, one in routes.items()}


def vocabulary_specialisation(routes: Routes, tokens: Sequence[int], n_experts: int) -> dict[int, F64]:
    """N_(x, e) / N_x for each token x, (E,) (OLMoE, eq. 8). `tokens` are input ids, predicted or true ones."""
    _check(routes, n_experts)
    if len(tokens) != len(routes):
        raise RequestError(f"{len(tokens)} tokens for {len(routes)} routes; give one for each")
    ids = np.asarray(tokens)
    return {int(x): load(routes[ids == x], n_experts).counts / int((ids == x).sum()) for x in np.unique(ids)}


def repetition(routes: Routes) -> tuple[float, float]:
    """How often the next token has the same first expert, and how often it shares any (Mixtral, Table 5)."""
    if len(routes) < 2:
        raise RequestError("repetition wants at least two tokens")
    first = float((routes[1:, 0] == routes[:-1, 0]).mean())
    shared = (routes[1:, :, None] == routes[:-1, None, :]).any(axis=(1, 2))
    return first, float(shared.mean())


def expert_effects(
    losses: Callable[[Sequence[tuple[int, int]], Sequence[int]], NDArray[np.floating]],
    experts: Sequence[tuple[int, int]],
    domains: Mapping[str, Sequence[int]],
    *,
    seed: int = 0,
) -> list[ExpertEffect]:
    """Silence experts one at a time, and measure each domain's loss per token with and without.

    `losses(experts, ids)` gives the token losses of ids with these (layer, expert) silenced: with
    `vitral.lens.without` in the engine, or edited in a `Glass`. Intervals are over tokens, paired.
    """
    whole = {name: losses((), ids) for name, ids in domains.items()}
    return [
        ExpertEffect(
            *one, {name: bootstrap(losses((one,), ids) - whole[name], seed=seed) for name, ids in domains.items()}
        )
        for one in experts
    ]


def _check(routes: Routes, n_experts: int) -> None:
    if routes.ndim != 2 or not routes.size or routes.min() < 0 or routes.max() >= n_experts:
        raise RequestError(
            f"routes of shape {routes.shape}; wanted: (T, k) experts from 0 to {n_experts - 1}, T at least 1"
        )
