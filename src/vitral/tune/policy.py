"""What a loss may ask of a model: log-probabilities, distributions, scores; logits only where they are needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vitral.tune.batch import Batch
from vitral.tune.forward import NO_TAPS, Taps, Transformer

__all__ = ["Policy", "Precision"]

Precision = Literal["float32", "bfloat16"]
_LARGEST_LOGITS = 1 << 26  # numbers kept for the backward pass; above, they are computed twice, a piece at a time


class Policy:
    """A model as losses see it. `bfloat16` multiplies in that type; sums, norms, masters and losses stay float32.

    `head` scores tokens (a reward or a value); `routing` holds the router logits (T, E) of each layer of
    the last pass, if `watch_routing`. With `follow_routes` a batch's routes go before the router's own choice
    (routing replay, arXiv 2510.11370): the chosen experts are weighed by the present router, and its gradient stays.
    `rerouted` says for each layer of the last pass which share of the routes it would not have chosen.
    """

    def __init__(
        self,
        model: Transformer,
        precision: Precision = "float32",
        head: nn.Module | None = None,
        watch_routing: bool = False,
        follow_routes: bool = False,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        self.model, self.precision, self.head = model, precision, head
        self.watch_routing = watch_routing and model.spec.moe is not None
        self.follow_routes = follow_routes
        self.routing: dict[str, Tensor] = {}
        self.rerouted: dict[str, float] = {}
        self._forward = forward or model  # a wrapper such as DistributedDataParallel runs in the model's stead

    def hidden(self, batch: Batch) -> Tensor:
        """What the unembedding reads, at the places that are supervised: (N, C)."""
        return self._states(batch)[batch.places]

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probability of each supervised token, (N,), float32."""
        return self._pieces(
            batch, lambda logits, labels: logits.gather(-1, labels[:, None])[:, 0] - logits.logsumexp(-1)
        )

    def logprobs_and_entropy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, and the entropy (nats) of each distribution without gradient: (N,), (N,)."""

        def both(logits: Tensor, labels: Tensor) -> Tensor:
            logp = logits.log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1).detach()
            return torch.stack([logp.gather(-1, labels[:, None])[:, 0], entropy], -1)

        logp, entropy = self._pieces(batch, both).unbind(-1)
        return logp, entropy

    def distributions(self, batch: Batch) -> Tensor:
        """Log-probabilities of all tokens at the supervised places, (N, V), float32."""
        with self._autocast():
            return self.model.project(self.hidden(batch)).float().log_softmax(-1)

    def scores(self, batch: Batch) -> Tensor:
        """The head's number for each supervised place, (N,), float32."""
        assert self.head is not None, "a loss that scores is only made with a head"
        scored: Tensor = self.head(self.hidden(batch).float())
        return scored[:, 0]

    def last_scores(self, batch: Batch) -> Tensor:
        """The head's number at the last token of each sequence, (B,), float32."""
        assert self.head is not None, "a loss that scores is only made with a head"
        ends = torch.tensor(batch.packed.lengths).cumsum(0) - 1
        scored: Tensor = self.head(self._states(batch)[ends].float())
        return scored[:, 0]

    def _states(self, batch: Batch) -> Tensor:
        self.routing, self.rerouted = {}, {}
        routes = batch.routes if self.follow_routes else None
        wanted: tuple[str, ...] = ("hook_router_logits",) if self.watch_routing else ()
        wanted += ("hook_expert_indices",) if routes is not None else ()

        def see(name: str, value: Tensor) -> Tensor | None:
            if routes is not None and name.endswith("hook_expert_indices"):
                return self._rerouted(name, value, routes)
            self.routing.setdefault(name, value)  # a recomputed pass shows it again
            return None

        with self._autocast():
            return self._forward(batch.packed, Taps(see, lambda name: name.endswith(wanted)) if wanted else NO_TAPS)

    def _rerouted(self, name: str, own: Tensor, routes: Tensor) -> Tensor:
        """The routes (T, k) of this layer, and the router's own where there are none."""
        given = routes[:, int(name.split(".")[1]) - self.model.spec.mixture_layers.start]
        known = given[:, 0] >= 0
        others = ~(given[:, :, None] == own[:, None, :]).any(-1)
        self.rerouted[name] = float(others[known].float().mean())
        return torch.where(known[:, None], given, own)

    def _pieces(self, batch: Batch, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`make(logits, labels)` over pieces of the supervised places, so that no (N, V) is ever kept."""
        hidden, labels = self.hidden(batch), batch.labels
        rows = max(1, _LARGEST_LOGITS // self.model.spec.vocab_size)

        def piece(h: Tensor, y: Tensor) -> Tensor:
            with self._autocast():
                logits = self.model.project(h)
            return make(logits if logits.dtype == torch.float64 else logits.float(), y)

        if len(hidden) <= rows:
            return piece(hidden, labels)
        cuts = zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
        return torch.cat([recompute(piece, h, y, use_reentrant=False) for h, y in cuts])

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
