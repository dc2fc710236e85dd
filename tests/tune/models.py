"""Tiny models of every family as torch holds them."""

from __future__ import annotations

import torch

from tests.parity.families import FAMILIES, random_weights
from vitral.model.spec import ModelSpec
from vitral.tune.forward import Transformer


def tiny(family: str = "llama-3.1", dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    return of(FAMILIES[family], dtype, seed)


def of(spec: ModelSpec, dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    model = Transformer(spec, 64)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in random_weights(spec, seed).items()})
    return model.to(dtype).requires_grad_(False)
