"""Which part of the prompt an answer rests on, by leaving parts out and running again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.finding import Finding
from vitral.lens.statistics import log_softmax
from vitral.model.law import F32

__all__ = ["Logits", "SourceScores", "answer_log_probability", "occlude", "source_scores"]

Logits = Callable[[Sequence[int]], F32]
"""Logits (T, V) of ids: `LanguageModel.logits` at full speed, or `Glass.logits`."""

MOST_SOURCES_EXACT = 10


@dataclass(frozen=True, slots=True)
class SourceScores(Finding):
    """What each source contributes to the answer's log-probability, nats, in the order of the sources.

    full, empty: the answer's log-probability with all sources, and with none. left_out: the fall when one
    is missing. shapley: the exact Shapley value (sums to full - empty), None where only `left_out` was asked.
    """

    names: tuple[str, ...]
    full: float
    empty: float
    left_out: NDArray[np.float64]
    shapley: NDArray[np.float64] | None


def answer_log_probability(logits: Logits, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Sum of log p(token | all before) over the answer's tokens."""
    if not len(prompt) or not len(answer):
        raise RequestError("a prompt and an answer of at least one token each are wanted")
    rows = logits([*prompt, *answer])[len(prompt) - 1 : -1]
    return float(log_softmax(rows)[np.arange(len(answer)), list(answer)].sum())


def occlude(logits: Logits, prompt: Sequence[int], answer: Sequence[int], replacement: int) -> NDArray[np.float64]:
    """How far the answer's log-probability falls when one token of the prompt is replaced, (T,). arXiv 1311.2901.

    Exact for this replacement: each is a run of its own. Another replacement gives other numbers.
    """
    full = answer_log_probability(logits, prompt, answer)

    def fall(place: int) -> float:
        return full - answer_log_probability(logits, [*prompt[:place], replacement, *prompt[place + 1 :]], answer)

    return np.array([fall(place) for place in range(len(prompt))])


def source_scores(
    logits: Logits,
    before: Sequence[int],
    sources: Mapping[str, Sequence[int]],
    after: Sequence[int],
    answer: Sequence[int],
    *,
    shapley: bool = True,
) -> SourceScores:
    """Credit for an answer, among pieces of context that may be left out whole.

    The prompt is `before`, the sources in order, `after`. Shapley values (1953) over all 2^n subsets, where
    ContextCite (arXiv 2409.00729) fits a line to some: exact, and for at most 10 sources; RequestError for more.
    """
    names = tuple(sources)
    n = len(names)
    if not n or (shapley and n > MOST_SOURCES_EXACT):
        raise RequestError(f"{n} sources; allowed: 1 to {MOST_SOURCES_EXACT}, or any number with shapley=False")
    known: dict[frozenset[int], float] = {}

    def worth(kept: frozenset[int]) -> float:
        if kept not in known:
            middle = [id for i in sorted(kept) for id in sources[names[i]]]
            known[kept] = answer_log_probability(logits, [*before, *middle, *after], answer)
        return known[kept]

    everything = frozenset(range(n))
    left_out = np.array([worth(everything) - worth(everything - {i}) for i in range(n)])
    values = None
    if shapley:
        values = np.zeros(n)
        for i in range(n):
            for size in range(n):
                weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
                for kept in combinations(sorted(everything - {i}), size):
                    values[i] += weight * (worth(frozenset(kept) | {i}) - worth(frozenset(kept)))
    return SourceScores(names, worth(everything), worth(frozenset()), left_out, values)
