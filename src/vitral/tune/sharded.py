"""A model in shares: each process keeps its part of every parameter, gradient and moment (FSDP2).

A block's parameters are gathered while it computes and let go again; those that stand outside the blocks (embedding,
last norm, unembedding) stay gathered from the forward pass to the end of the backward one. Gathering needs every
process at the same time: all of them make as many passes in a step (`Trainer.run_step`), through every expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitral.tune import distributed
from vitral.tune.forward import Mixture, Transformer

__all__ = ["gather", "let_go", "part_like", "shard", "whole"]


def shard(model: Transformer, head: nn.Module | None = None) -> None:
    """Keep this process's share of each parameter; gradients are summed over the processes, as everywhere here.

    Parameters become other objects: an optimiser is made afterwards. The whole model is in memory before.
    """
    for module in model.modules():
        if isinstance(module, Mixture):
            module.run_idle_experts = True
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    for part in (*model.blocks, model, *([head] if head is not None else [])):
        module = fully_shard(part, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo sums, and does nothing else


def gather(model: nn.Module) -> None:
    """Make every parameter whole in every process, as it is without shares; every process calls it."""
    for module in _sharded(model):
        module.unshard()


def let_go(model: nn.Module) -> None:
    """Keep the share alone again of what is gathered. Does nothing to a model that is not in shares."""
    for module in _sharded(model):
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is in shares, detached; every process calls it. Another one is given back."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where `like` is in shares and of its shape; else the tensor itself."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    with torch.no_grad():
        return distribute_tensor(tensor, like.device_mesh, like.placements)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
