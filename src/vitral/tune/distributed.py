"""Several processes, started by torchrun: each takes its share of a step's items, gradients are summed.

A model stands whole in every process, or in shares (`tune/sharded.py`), whose gradients are summed already. Because every loss divides by the units of the whole step, the sum over processes is the gradient of one process
that had all items.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = [
    "any_of",
    "begin",
    "end",
    "from_all",
    "is_first",
    "rank",
    "share_of",
    "summed",
    "summed_numbers",
    "world_size",
]

T = TypeVar("T")


def begin() -> None:
    """Join the others if torchrun started this process (RANK and WORLD_SIZE are set); else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def end() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def share_of(items: Sequence[T]) -> list[T]:
    """Every `world_size`-th item, from this process's number on.

    >>> share_of([1, 2, 3])
    [1, 2, 3]
    """
    return list(items[rank() :: world_size()])


def summed(parameters: Sequence[Tensor], loss: float, metrics: dict[str, float]) -> tuple[float, dict[str, float]]:
    """Sum the gradients over all processes in place, and loss and metrics with them."""
    if world_size() == 1:
        return loss, metrics
    _sum_gradients([parameter for parameter in parameters if not isinstance(parameter, DTensor)])
    everyone = from_all((loss, metrics))
    names = sorted({name for _, more in everyone for name in more})
    return sum(one for one, _ in everyone), {name: sum(more.get(name, 0.0) for _, more in everyone) for name in names}


def _sum_gradients(parameters: Sequence[Tensor]) -> None:
    if not parameters:
        return
    for parameter in parameters:
        if parameter.grad is None:  # an expert that no token of this process chose
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    at = 0
    for parameter in parameters:
        assert parameter.grad is not None, "made above"
        parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()


def from_all(value: T) -> list[T]:
    """The value of each process, in their order; every process calls it.

    >>> from_all("here")
    ['here']
    """
    if world_size() == 1:
        return [value]
    everyone: list[T] = [value] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def any_of(claim: bool) -> bool:
    """Whether it is true in any process; every process calls it, and all are told the same."""
    return any(from_all(claim))


def summed_numbers(*numbers: float) -> list[float]:
    """Each number summed over all processes.

    >>> summed_numbers(2.0, 3.0)
    [2.0, 3.0]
    """
    if world_size() == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(number) for number in total]
