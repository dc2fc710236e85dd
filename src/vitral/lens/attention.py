"""What heads attend to, as numbers in [0, 1]. Attention is not effect: confirm it by a knock-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.finding import Finding
from vitral.lens.glass import Values
from vitral.model.spec import ModelSpec

__all__ = ["HeadScores", "head_scores", "repeated_sequence", "retrieval_scores", "top_heads"]

F64 = NDArray[np.float64]
_NAMES = ("previous_token", "current_token", "first_token", "duplicate", "induction", "entropy")
Head = tuple[int, int]
"""(layer, head), both from 0."""


@dataclass(frozen=True, slots=True)
class HeadScores(Finding):
    """One number for each head, (L, H).

    previous_token: mean of A[t, t - 1], t from 1. current_token: mean of A[t, t]. first_token: mean of
    A[t, 0], t from 1 (the sink). duplicate: attention of repeated tokens to earlier copies. induction: the same to
    the places after earlier copies (arXiv 2209.11895); both nan without repeated tokens. entropy: mean row entropy, nats.
    """

    previous_token: F64
    current_token: F64
    first_token: F64
    duplicate: F64
    induction: F64
    entropy: F64


def repeated_sequence(spec: ModelSpec, n: int, *, bos: int | None = None, seed: int = 0, low: int = 0) -> list[int]:
    """[bos,] r1 ... rn, r1 ... rn of distinct random ids from `low` up: what induction is measured on.

    Raises RequestError if the vocabulary has fewer than n ids.
    """
    if not 1 <= n <= spec.vocab_size - low:
        raise RequestError(f"{n} distinct ids from {low} to {spec.vocab_size - 1}; give fewer")
    ids = np.random.default_rng(seed).choice(np.arange(low, spec.vocab_size), n, replace=False).tolist()
    return [*([] if bos is None else [bos]), *ids, *ids]


def head_scores(values: Values, ids: Sequence[int]) -> HeadScores:
    """Scores of all heads from the patterns (H, T, T) of one prompt of T ids."""
    T = len(ids)
    n_layers = 1 + max((int(n.split(".")[1]) for n in values if n.endswith("attn.hook_pattern")), default=-1)
    names = [f"blocks.{i}.attn.hook_pattern" for i in range(n_layers)]
    if not names or any(name not in values for name in names):
        raise RequestError("not every layer's attn.hook_pattern was recorded; record *.attn.hook_pattern")
    same = np.equal.outer(ids, ids) & np.tri(T, k=-1, dtype=bool)  # (T, T): an earlier copy of the token
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    after &= np.tri(T, k=0, dtype=bool)
    repeated = same.any(axis=1)
    rows: dict[str, list[F64]] = {name: [] for name in _NAMES}
    for name in names:
        A = np.asarray(values[name], np.float64)  # (H, T, T)
        if A.shape[1:] != (T, T):
            raise RequestError(f"{name} has shape {A.shape}; {T} ids want (H, {T}, {T})")
        nothing = np.full(len(A), np.nan)
        rows["previous_token"].append(A.diagonal(-1, 1, 2).mean(axis=-1) if T > 1 else nothing)
        rows["current_token"].append(A.diagonal(0, 1, 2).mean(axis=-1))
        rows["first_token"].append(A[:, 1:, 0].mean(axis=-1) if T > 1 else nothing)
        for which, mask in (("duplicate", same), ("induction", after)):
            rows[which].append((A * mask).sum(axis=-1)[:, repeated].mean(axis=-1) if repeated.any() else nothing)
        rows["entropy"].append(-(A * np.log(np.where(A > 0, A, 1))).sum(axis=-1).mean(axis=-1))
    return HeadScores(**{name: np.stack(found) for name, found in rows.items()})


def retrieval_scores(values: Values, ids: Sequence[int], needle: Sequence[int], answer_start: int) -> F64:
    """Retrieval score of each head, (L, H): the share of the needle's tokens that it copies (arXiv 2404.15574).

    `needle` are the places of the needle in the prompt; from `answer_start` on, the ids repeat it. A token
    counts for a head whose most attended place, when the token is written, holds it inside the needle.
    """
    places = {int(ids[p]): p for p in needle}
    if not places or answer_start < 1 or answer_start >= len(ids):
        raise RequestError("a retrieval score wants places of a needle, and an answer that starts inside the ids")
    n_layers = 1 + max((int(n.split(".")[1]) for n in values if n.endswith("attn.hook_pattern")), default=-1)
    found = []
    for layer in range(n_layers):
        A = np.asarray(values[f"blocks.{layer}.attn.hook_pattern"])
        copied: list[set[int]] = [set() for _ in range(len(A))]
        for t in range(answer_start, len(ids)):
            for h, place in enumerate(A[:, t - 1].argmax(axis=-1)):
                if int(place) in needle and ids[place] == ids[t]:
                    copied[h].add(int(ids[t]))
        found.append([len(one) / len(places) for one in copied])
    return np.asarray(found, np.float64)


def top_heads(scores: F64, n: int) -> list[Head]:
    """The n heads of the largest scores (L, H), largest first; of equals the lower one.

    >>> top_heads(np.array([[0.1, 0.9], [0.5, 0.0]]), 2)
    [(0, 1), (1, 0)]
    """
    order = np.argsort(-scores.reshape(-1), kind="stable")[:n]
    return [(int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in order]
