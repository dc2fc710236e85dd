"""What a run needs to go on exactly where it stopped: trained parameters, optimiser, random numbers, step."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from vitral.errors import TuneError
from vitral.tune import distributed
from vitral.tune.files import write_whole
from vitral.tune.sharded import part_like, whole

__all__ = ["load_state", "save_state", "state_of", "trained_parameters"]


def trained_parameters(model: nn.Module, head: nn.Module | None = None) -> dict[str, Tensor]:
    """Parameters that are trained, by name; those of a head begin with `head.`."""
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return found | ({f"head.{name}": p for name, p in head.named_parameters()} if head is not None else {})


def state_of(
    trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The state as it is written, whole; every process calls it, for a model in shares is gathered."""
    moments = optimizer.state_dict()
    moments["state"] = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in each.items()}
        for number, each in moments["state"].items()
    }
    return {
        "parameters": {name: whole(p) for name, p in trained.items()},
        "optimizer": moments,
        "random": distributed.from_all(torch.get_rng_state()),
        "facts": dict(facts),
    }


def save_state(path: Path, content: Mapping[str, Any], then: str) -> None:
    """Write the state whole. Raises TuneError where it cannot be; the state before is then still there."""

    def save(file: BinaryIO) -> None:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch's writer wraps a full disk in one
            raise OSError(str(error)) from None

    write_whole(path, save, then)


def load_state(path: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a state back and return its facts. Raises TuneError if it is not of this model."""
    try:
        content = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise TuneError(f"{path} does not exist: no step of this run was saved; start it anew") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TuneError(f"{path} is no state of a run, or a broken one: {str(error)[:200]}") from None
    stored: Mapping[str, Tensor] = content["parameters"]
    if {n: p.shape for n, p in trained.items()} != {n: p.shape for n, p in stored.items()}:
        raise TuneError(f"{path} holds other trained parameters than this recipe trains; it belongs to another run")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(part_like(stored[name], parameter))
    moments, of = content["optimizer"], dict(enumerate(p for g in optimizer.param_groups for p in g["params"]))
    for number, each in moments["state"].items():
        moments["state"][number] = {name: part_like(value, of[number]) for name, value in each.items()}
    optimizer.load_state_dict(moments)
    torch.set_rng_state(content["random"][distributed.rank()])
    facts: dict[str, Any] = content["facts"]
    return facts
