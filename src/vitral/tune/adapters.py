"""Low-rank adapters: a product learns `scale * B @ A` beside its frozen weight.

LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732: scale alpha / sqrt(r)), DoRA (arXiv 2402.09353: each
output row has a magnitude of its own). An expert of a mixture is a Linear like any other, so its adapter
is factored too and computes only for the tokens routed to it.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.errors import AdapterMismatch
from vitral.tune.forward import Linear, Transformer
from vitral.tune.lora_plan import LoraPlan

__all__ = ["Dora", "Lora", "adapters_of", "attach", "frozen_copy", "merge", "merged_weight", "train_all"]


class Lora(nn.Module):
    """`x @ W.T + scale * dropout(x) @ A.T @ B.T`; A (r, in), B (out, r), float32 masters. B starts at zero."""

    def __init__(self, n_out: int, n_in: int, plan: LoraPlan, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.scale, self.dropout = plan.scale, plan.dropout
        bound = 1 / math.sqrt(n_in)  # Kaiming's uniform with a = sqrt(5), as the authors' code and PEFT have it
        self.a = nn.Parameter(torch.empty(plan.rank, n_in).uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.zeros(n_out, plan.rank))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight) + self._low_rank(self._dropped(x))

    def merged(self, weight: Tensor) -> Tensor:
        """The one matrix that weight and adapter are together, in float32 (or wider)."""
        both: Tensor = _wide(weight) + self.scale * (_wide(self.b) @ _wide(self.a))
        return both

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _low_rank(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.a.dtype), self.a), self.b) * self.scale


class Dora(Lora):
    """Each row of `W + scale * B @ A` is set to a learnt magnitude, which starts as the row's own length."""

    def __init__(
        self,
        n_out: int,
        n_in: int,
        plan: LoraPlan,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(n_out, n_in, plan, generator)
        start = torch.ones(n_out) if weight is None else _wide(weight).norm(dim=1).float()
        self.magnitude = nn.Parameter(start)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():  # the length gets no gradient: section 4.3
            length = super().merged(weight).norm(dim=1)
        turn = self.magnitude / length
        plain, dropped = F.linear(x, weight), self._dropped(x)
        seen = plain if dropped is x else F.linear(dropped, weight)
        out: Tensor = plain + (turn - 1) * seen + turn * self._low_rank(dropped)
        return out

    def merged(self, weight: Tensor) -> Tensor:
        both = super().merged(weight)
        turned: Tensor = both * (_wide(self.magnitude) / both.norm(dim=1))[:, None]
        return turned


def attach(model: Transformer, plan: LoraPlan, seed: int = 0) -> list[str]:
    """Put a fresh adapter at every product that the plan names; only the adapters are trainable afterwards.

    Returns the names. Raises AdapterMismatch if a target, a layer or an expert matches nothing, or if
    there are adapters already.
    """
    if adapters_of(model):
        raise AdapterMismatch("the model has adapters already; merge them or load it again")
    names = plan.matched([name for name, _ in model.linears()])
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    products = dict(model.linears())
    for name in names:
        weight = products[name].weight
        if plan.kind == "dora":
            products[name].adapter = Dora(*_size(weight), plan, generator, weight)
        else:
            products[name].adapter = Lora(*_size(weight), plan, generator)
    return names


def train_all(model: Transformer, router: bool = False) -> list[str]:
    """Full tuning: every parameter becomes a trainable float32 master, routers only if `router`."""
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(router or not name.endswith("mlp.router.weight"))
        if parameter.requires_grad:
            parameter.data = _wide(parameter.data)
            names.append(name)
    return names


def adapters_of(model: Transformer) -> dict[str, Lora]:
    """The adapters by the name of their product."""
    return {name: product.adapter for name, product in model.linears() if isinstance(product.adapter, Lora)}


def merged_weight(product: Linear) -> Tensor:
    """The weight with its adapter in it, float32; no gradient."""
    with torch.no_grad():
        return product.adapter.merged(product.weight) if isinstance(product.adapter, Lora) else _wide(product.weight)


def merge(model: Transformer) -> Transformer:
    """Add every adapter to its weight in float32 and take it off; the model itself is returned."""
    for _, product in model.linears():
        if product.adapter is not None:
            product.weight = nn.Parameter(merged_weight(product), requires_grad=False)
            product.adapter = None
    return model


def frozen_copy(model: Transformer) -> Transformer:
    """A model that stays as this one is now. What is not trainable is shared, not copied."""
    shared: dict[int, object] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _size(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
