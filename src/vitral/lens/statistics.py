"""Intervals: how far a mean may be from what more samples would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.lens.finding import Finding

__all__ = ["Interval", "bootstrap", "log_softmax", "softmax", "token_losses"]


@dataclass(frozen=True, slots=True)
class Interval(Finding):
    """A mean and the bounds between which `level` of the resampled means lie; `n` samples."""

    mean: float
    low: float
    high: float
    level: float
    n: int

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above a value."""
        return self.low > value


def bootstrap(
    samples: Sequence[float] | NDArray[np.floating], level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of a mean (Efron 1979): the means of `n_resamples` draws with replacement.

    Raises RequestError for no samples or a level outside (0, 1). One sample gives an interval of width 0.

    >>> bootstrap([1.0, 2.0, 3.0]).mean
    2.0
    """
    values = np.asarray(samples, np.float64).reshape(-1)
    if not len(values) or not 0 < level < 1 or n_resamples < 1:
        raise RequestError(
            f"an interval of {len(values)} samples, level {level}, {n_resamples} resamples; "
            "give at least one of each and a level between 0 and 1"
        )
    draws = np.random.default_rng(seed).integers(0, len(values), (n_resamples, len(values)))
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, len(values))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64.

    >>> softmax(np.array([0.0, np.log(3.0)])).round(6).tolist()
    [0.25, 0.75]
    """
    return np.asarray(np.exp(log_softmax(logits)))


def token_losses(logits: NDArray[np.floating], ids: Sequence[int]) -> NDArray[np.float64]:
    """-log p(id | all before) of every id but the first, (T - 1,), nats; `logits` (T, V) are those of these ids."""
    if len(logits) != len(ids) or len(ids) < 2:
        raise RequestError(f"{len(logits)} rows of logits for {len(ids)} ids; give one for each of at least two")
    return np.asarray(-log_softmax(logits[:-1])[np.arange(len(ids) - 1), list(ids[1:])])
