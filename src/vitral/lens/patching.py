"""What happens to an answer when one value is taken from another run: causes, not correlations.

A `Metric` turns logits (T, V) into one number. Effects are normalised: 0 leaves the corrupt run as it
was, 1 restores the clean one (arXiv 2309.16042, 2404.15255). Each comes with two controls: the
placebo puts back what was there, and must give 0; random ones put a value of the same size in a random direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.errors import NumericalError, RequestError
from vitral.lens.finding import Finding
from vitral.lens.glass import Edit, Glass, Values
from vitral.lens.statistics import Interval, bootstrap
from vitral.model.law import F32

__all__ = [
    "Estimate",
    "Gradients",
    "Metric",
    "Patch",
    "Site",
    "attribution_patching",
    "logit_difference",
    "patch",
    "path_patch",
]

Metric = Callable[[F32], float]
Gradients = Callable[[Sequence[int], Sequence[str]], Mapping[str, NDArray[np.floating]]]
"""Derivatives of the metric by values, for ids and names: whoever has a differentiable pass hands it in."""


@dataclass(frozen=True, slots=True)
class Site(Finding):
    """A value or a part of it: its name, positions (all if None) and, for values with heads, one head."""

    name: str
    positions: tuple[int, ...] | None = None
    head: int | None = None

    def index(self) -> tuple[slice | list[int] | int, ...]:
        """Where the part lies in the value (T, ...) or, of patterns and scores, (H, T, S)."""
        rows = slice(None) if self.positions is None else list(self.positions)
        if self.name.endswith(("hook_pattern", "hook_attn_scores")):
            return (slice(None) if self.head is None else self.head, rows)
        return (rows,) if self.head is None else (rows, self.head)


@dataclass(frozen=True, slots=True)
class Patch(Finding):
    """The effect of one patch: 0 as corrupt, 1 as clean; `random` is the interval of the random controls' effects."""

    site: Site
    effect: float
    patched: float
    clean: float
    corrupt: float
    placebo: float
    random: Interval | None


@dataclass(frozen=True, slots=True)
class Estimate(Finding):
    """What patching a value would do to the metric, to first order: (T,), one number for each token.

    random: the interval of what random controls would do, over all tokens together.
    """

    effect: F32
    random: Interval | None


def logit_difference(target: int, contrast: int, position: int = -1) -> Metric:
    """logit(target) - logit(contrast) after a token.

    >>> logit_difference(1, 0)(np.array([[1.0, 4.0]], np.float32))
    3.0
    """
    return lambda logits: float(np.float64(logits[position, target]) - np.float64(logits[position, contrast]))


def patch(
    glass: Glass,
    clean: Sequence[int],
    corrupt: Sequence[int],
    sites: Sequence[Site],
    metric: Metric,
    *,
    n_random: int = 0,
    seed: int = 0,
) -> list[Patch]:
    """Put values of the clean run into the corrupt run, one site at a time: (patched - corrupt) / (clean - corrupt).

    Both prompts have the same length. Cost: one run for each site, two more with the placebo and
    `n_random` more for the random controls. Raises RequestError for prompts that differ in length or not at all to the metric.
    """
    names = sorted({site.name for site in sites})
    from_clean, from_corrupt = _both(glass, clean, corrupt, names)
    high, low = _metric(metric, from_clean), _metric(metric, from_corrupt)
    gap = _gap(high, low)
    rng = np.random.default_rng(seed)

    def run(site: Site, source: NDArray[np.generic]) -> float:
        return metric(glass.logits(corrupt, {site.name: _put(site, source)}))

    found = []
    for site in sites:
        value = run(site, from_clean[site.name])
        placebo = (run(site, from_corrupt[site.name]) - low) / gap
        random = [(run(site, _random_like(site, from_clean, from_corrupt, rng)) - low) / gap for _ in range(n_random)]
        interval = bootstrap(random, seed=seed) if random else None
        found.append(Patch(site, (value - low) / gap, value, high, low, placebo, interval))
    return found


def path_patch(
    glass: Glass,
    clean: Sequence[int],
    corrupt: Sequence[int],
    sender: Site,
    receivers: Sequence[Site],
    metric: Metric,
    *,
    n_random: int = 0,
    seed: int = 0,
) -> Patch:
    """The effect of a sender on the answer through some receivers alone (arXiv 2211.00593, 2304.05969).

    First the corrupt run with the sender's clean value, everything else that lies between the two held at
    corrupt attention and feed-forward outputs, gives the receivers' values; then the corrupt run
    takes these. Controls as in `patch`: the placebo sends what was there, `n_random` random ones send the sender's
    value moved as far in a random direction. Two runs each. The sender writes an attention or feed-forward output, or a head's z, of a block before the receivers'.
    """
    names = sorted({sender.name, *(site.name for site in receivers)})
    outputs = ["*.hook_attn_out", "*.hook_mlp_out"]
    from_clean, from_corrupt = _both(glass, clean, corrupt, [*names, *outputs])
    first = _block(sender.name)
    if any(_block(site.name) <= first for site in receivers):
        raise RequestError(f"a receiver does not lie after {sender.name}; give receivers of later blocks")
    high, low = _metric(metric, from_clean), _metric(metric, from_corrupt)
    gap = _gap(high, low)
    through = {site.name for site in receivers}

    def hold(name: str) -> Edit:
        return lambda value: from_corrupt[name]

    held = {
        name: hold(name)
        for name in from_corrupt
        if name.endswith(("hook_attn_out", "hook_mlp_out"))
        and name not in through
        and name != sender.name
        and not (_block(name) == first and name.endswith("hook_attn_out") and ".attn." in sender.name)
    }

    def effect(source: NDArray[np.generic]) -> float:
        seen = glass.run(corrupt, sorted(through), {**held, sender.name: _put(sender, source)})
        edits = {site.name: _put(site, seen[site.name]) for site in receivers}
        return metric(glass.logits(corrupt, edits))

    value = effect(from_clean[sender.name])
    placebo = (effect(from_corrupt[sender.name]) - low) / gap
    rng = np.random.default_rng(seed)
    random = [(effect(_random_like(sender, from_clean, from_corrupt, rng)) - low) / gap for _ in range(n_random)]
    interval = bootstrap(random, seed=seed) if random else None
    return Patch(sender, (value - low) / gap, value, high, low, placebo, interval)


def attribution_patching(
    glass: Glass,
    clean: Sequence[int],
    corrupt: Sequence[int],
    names: Sequence[str],
    gradients: Gradients,
    *,
    n_random: int = 0,
    seed: int = 0,
) -> dict[str, Estimate]:
    """First-order estimate of patching every value at once: (clean - corrupt) * dm/da at the corrupt run.

    arXiv 2403.00745 (AtP*). `gradients` comes from a differentiable pass, such as that of the extra `tune`; lenses
    themselves have none. Random controls move each value as far in a random direction; they cost no run. The
    placebo of a linear estimate is 0 by its form, so there is none: `patch` says how far the estimate is right.
    Raises RequestError where a gradient has another shape than its value.
    """
    from_clean, from_corrupt = _both(glass, clean, corrupt, names)
    slopes = gradients(corrupt, names)
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        before = np.asarray(from_corrupt[name], np.float32)
        step = np.asarray(from_clean[name], np.float32) - before
        if name not in slopes or slopes[name].shape != step.shape:
            raise RequestError(f"the gradient of {name} is missing or not of shape {step.shape}")
        slope = slopes[name]
        draws = [
            np.asarray(_random_like(Site(name), from_clean, from_corrupt, rng), np.float32) - before
            for _ in range(n_random)
        ]
        random = [float((draw * slope).sum(dtype=np.float64)) for draw in draws]
        each = (step * slope).reshape(len(step), -1).sum(axis=-1)
        found[name] = Estimate(each, bootstrap(random, seed=seed) if random else None)
    return found


def _both(glass: Glass, clean: Sequence[int], corrupt: Sequence[int], names: Sequence[str]) -> tuple[Values, Values]:
    if len(clean) != len(corrupt):
        raise RequestError(f"the prompts have {len(clean)} and {len(corrupt)} tokens; patching wants the same number")
    wanted = [*names, "unembed.hook_out"]
    return glass.run(clean, wanted), glass.run(corrupt, wanted)


def _metric(metric: Metric, values: Values) -> float:
    return metric(np.asarray(values["unembed.hook_out"], np.float32))


def _gap(high: float, low: float) -> float:
    if not np.isfinite(high) or not np.isfinite(low):
        raise NumericalError(
            f"the metric is {high} for the clean run and {low} for the corrupt one; neither may be infinite"
        )
    if high == low:
        raise RequestError("the metric is the same for both prompts: nothing can be restored; choose another pair")
    return high - low


def _put(site: Site, source: NDArray[np.generic]) -> Edit:
    def edit(value: NDArray[np.generic]) -> NDArray[np.generic]:
        if value.shape != source.shape:
            raise RequestError(f"{site.name} has shape {value.shape}, in the other run {source.shape}")
        value[site.index()] = source[site.index()]
        return value

    return edit


def _random_like(site: Site, clean: Values, corrupt: Values, rng: np.random.Generator) -> NDArray[np.generic]:
    """The corrupt value moved as far as the clean one lies from it, in a random direction."""
    before = np.asarray(corrupt[site.name], np.float32)
    step = np.asarray(clean[site.name], np.float32) - before
    step[~np.isfinite(step)] = 0
    noise = rng.standard_normal(step.shape).astype(np.float32)
    size = np.linalg.norm(step, axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    return np.asarray(before + noise * size, np.float32)


def _block(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else (-1 if name == "hook_embed" else 1 << 30)
