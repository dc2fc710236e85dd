"""Losses of the router, layer by layer: pooled over layers, the collapse of one hides behind another.

Balance: Switch Transformer (arXiv 2101.03961, equation 4). z-loss: ST-MoE (arXiv 2202.08906, equation 5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["balance_loss", "expert_load", "router_z_loss"]


def expert_load(logits: Tensor, n_chosen: int) -> Tensor:
    """Share of the choices that each expert gets, (E,), from router logits (T, E)."""
    chosen = (-logits.softmax(-1)).argsort(dim=-1, stable=True)[:, :n_chosen]
    return torch.bincount(chosen.flatten(), minlength=logits.shape[1]) / chosen.numel()


def balance_loss(routing: Mapping[str, Tensor], n_chosen: int) -> Tensor:
    """Mean over layers of E * sum(load * mean probability): 1 when balanced, E when one expert gets all.

    >>> even = {"a": torch.tensor([[9.0, 0.0], [0.0, 9.0]])}
    >>> collapsed = {"a": torch.tensor([[9.0, 0.0], [9.0, 0.0]])}
    >>> round(float(balance_loss(even, 1)), 2), round(float(balance_loss(collapsed, 1)), 2)
    (1.0, 2.0)
    """
    each = [x.shape[1] * (expert_load(x, n_chosen) * x.softmax(-1).mean(0)).sum() for x in routing.values()]
    return torch.stack(each).mean()


def router_z_loss(routing: Mapping[str, Tensor]) -> Tensor:
    """Mean over layers and tokens of the squared log-sum-exp: keeps router logits small."""
    return torch.stack([x.logsumexp(-1).square().mean() for x in routing.values()]).mean()
