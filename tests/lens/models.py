"""Tiny models for lenses, made of weights that a test gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.parity.families import FAMILIES, random_weights
from vitral.formats.quants import type_info
from vitral.formats.weights import Tensor, Weights
from vitral.lens import Glass
from vitral.model.law import F32
from vitral.model.spec import ModelSpec


def as_weights(spec: ModelSpec, values: Mapping[str, F32]) -> Weights:
    def tensor(name: str, value: F32) -> Tensor:
        raw = np.ascontiguousarray(value, np.float32)
        return Tensor(name, type_info("F32"), value.shape, lambda: raw.reshape(-1).view(np.uint8))

    return Weights(spec, {name: tensor(name, value) for name, value in values.items()})


def glass_of(family: str, seed: int = 0) -> Glass:
    spec = FAMILIES[family]
    return Glass(spec, as_weights(spec, random_weights(spec, seed)))
