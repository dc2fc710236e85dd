"""How much of a tuning an export keeps: the exported file against the tuned model, on rows of the tuned kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitral.tune.batch import Batch, Row
from vitral.tune.forward import Transformer

__all__ = ["Kept", "measure_kept"]

ENOUGH, HARDLY = 0.9, 0.5  # shares of the tuning below which there is a warning, and below which it counts as undone


@dataclass(frozen=True, slots=True)
class Kept:
    """Losses and divergences in nats a token, over `tokens` supervised tokens.

    share: 1 - KL(tuned || export) / KL(tuned || base): 1 keeps everything, 0 is the base again, below 0 is
    farther from the tuned model than the base is. agreement: how often both find the same token likeliest.
    """

    base_loss: float
    tuned_loss: float
    export_loss: float
    divergence: float
    base_divergence: float
    agreement: float
    tokens: int

    @property
    def share(self) -> float:
        """The share of the tuning kept; 1 where tuning changed nothing."""
        return 1.0 - self.divergence / self.base_divergence if self.base_divergence > 0 else 1.0

    @property
    def warning(self) -> str | None:
        """What to say of it, or None where enough is kept.

        >>> Kept(5.1, 3.9, 5.0, 1.2, 1.36, 0.3, 100).warning
        'this export keeps 12 % of the tuning: quantising undid most of it; serve the adapter beside the base, or use a wider type'
        """
        if self.share >= ENOUGH:
            return None
        advice = "serve the adapter beside the base, or use a wider type"
        if self.share < 0:  # a weak tuning, whose share of a percentage would say nothing
            return (
                f"this export is farther from the tuned model than the base is ({self.divergence:.3f} against "
                f"{self.base_divergence:.3f} nats a token): quantising changed more than the tuning did; {advice}"
            )
        verb = "quantising undid most of it" if self.share < HARDLY else "quantising lost part of it"
        return f"this export keeps {self.share:.0%}".replace("%", " %") + f" of the tuning: {verb}; {advice}"


def measure_kept(base: Transformer, tuned: Transformer, export: Transformer, rows: Sequence[Row]) -> Kept:
    """Compare three models of one vocabulary on the supervised tokens of some rows."""
    sums = torch.zeros(6, dtype=torch.float64)
    tokens = 0
    for row in rows:
        batch = Batch.of([row])
        with torch.no_grad():
            b, t, e = (_distribution(model, batch) for model in (base, tuned, export))
        picks = [-x.gather(-1, batch.labels[:, None]).sum() for x in (b, t, e)]
        gaps = [(t.exp() * (t - other)).sum() for other in (e, b)]
        same = (t.argmax(-1) == e.argmax(-1)).sum()
        sums += torch.stack([*picks, *gaps, same]).double()
        tokens += len(batch.labels)
    losses = (sums / tokens).tolist()
    return Kept(losses[0], losses[1], losses[2], losses[3], losses[4], losses[5], tokens)


def _distribution(model: Transformer, batch: Batch) -> Tensor:
    return model.project(model(batch.packed)[batch.places]).float().log_softmax(-1)
