"""How an answer depends on values inside, by derivatives: what the lenses of `vitral.lens` cannot compute themselves.

Values have the names of `vitral.model.taps`. A gradient says what a small change would do; a knock-out or a patch says
what a change does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitral.errors import RequestError
from vitral.model.taps import taps
from vitral.tune.forward import Packed, Taps, Transformer

__all__ = ["Metric", "gradients", "input_times_gradient", "integrated_gradients", "logit_difference"]

Metric = Callable[[Tensor], Tensor]
"""One number, differentiable, from logits (T, V)."""

F32 = NDArray[np.float32]
_EMBED = "hook_embed"


def logit_difference(target: int, contrast: int, position: int = -1) -> Metric:
    """logit(target) - logit(contrast) after a token; `vitral.lens.logit_difference`, differentiable.

    >>> logit_difference(1, 0)(torch.tensor([[1.0, 4.0]])).item()
    3.0
    """
    return lambda logits: logits[position, target] - logits[position, contrast]


def gradients(
    model: Transformer, metric: Metric
) -> Callable[[Sequence[int], Sequence[str]], Mapping[str, NDArray[np.floating]]]:
    """For `vitral.lens.attribution_patching`: derivatives of the metric by values, for ids and names or patterns.

    Shapes are those of the taps. RequestError for a name that the model has not, or that holds whole numbers.
    """

    def of(ids: Sequence[int], names: Sequence[str]) -> Mapping[str, NDArray[np.floating]]:
        wanted = _wanted(model, names)
        held: dict[str, Tensor] = {}

        def see(name: str, value: Tensor) -> Tensor:
            kept = value if value.requires_grad else value.detach().requires_grad_()
            held[name] = kept
            return kept

        logits = model.logits(Packed.of([list(ids)]), Taps(see, lambda name: name in wanted or name == _EMBED))
        asked = {name: value for name, value in held.items() if name in wanted}
        found = torch.autograd.grad(metric(logits), list(asked.values()), allow_unused=True)
        return {
            name: (torch.zeros_like(value) if slope is None else slope).detach().numpy()
            for (name, value), slope in zip(asked.items(), found, strict=True)
        }

    return of


def input_times_gradient(model: Transformer, ids: Sequence[int], metric: Metric) -> F32:
    """Embedding times gradient, summed for each token, (T,): to first order what the token adds. arXiv 1605.01713."""
    x = _embedding(model, ids)
    return np.asarray((x * gradients(model, metric)(ids, [_EMBED])[_EMBED]).sum(axis=-1), np.float32)


def integrated_gradients(
    model: Transformer, ids: Sequence[int], metric: Metric, *, baseline: F32 | None = None, steps: int = 64
) -> F32:
    """(x - baseline) times the mean gradient on the way from a baseline of embeddings, (T,). arXiv 1703.01365.

    baseline: (T, C), zeros if not given; another one gives other numbers. Midpoints of `steps` parts; the sum
    comes close to metric(x) - metric(baseline), the closer the more steps. Cost: a pass there and back for each.
    """
    if steps < 1:
        raise RequestError(f"steps is {steps}; allowed: 1 or more")
    x = _embedding(model, ids)
    start = np.zeros_like(x) if baseline is None else np.asarray(baseline, np.float32)
    if start.shape != x.shape:
        raise RequestError(f"the baseline has shape {start.shape}; the embeddings have {x.shape}")
    total = torch.zeros(x.shape)
    for step in range(steps):
        point = torch.tensor(start + (x - start) * np.float32((step + 0.5) / steps)).requires_grad_()
        replaced = Taps(lambda name, value, point=point: point.to(value.dtype), lambda name: name == _EMBED)  # type: ignore[misc]
        logits = model.logits(Packed.of([list(ids)]), replaced)
        total += torch.autograd.grad(metric(logits), [point])[0]
    return np.asarray(((x - start) * (total / steps).numpy()).sum(axis=-1), np.float32)


def _embedding(model: Transformer, ids: Sequence[int]) -> F32:
    seen: list[F32] = []

    def see(name: str, value: Tensor) -> None:
        seen.append(value.detach().float().numpy().copy())

    with torch.no_grad():
        model.logits(Packed.of([list(ids)]), Taps(see, lambda name: name == _EMBED))
    return seen[0]


def _wanted(model: Transformer, names: Sequence[str]) -> set[str]:
    known = [tap.name for tap in taps(model.spec)]
    found: set[str] = set()
    for pattern in names:
        some = {name for name in known if fnmatchcase(name, pattern)}
        if not some:
            raise RequestError(f"no tap is called {pattern!r:.60}; `vitral.model.taps` lists them")
        if whole := [name for name in some if name.endswith("hook_expert_indices")]:
            raise RequestError(f"{whole[0]} holds whole numbers, which have no derivative")
        found |= some
    return found
