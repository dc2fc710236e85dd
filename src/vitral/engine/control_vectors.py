"""Control vectors: steering directions for each block, as llama.cpp keeps them in GGUF.

Tensor `direction.N` (C,) is added to what leaves block N: here a `steer` of `blocks.N.hook_resid_post`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vitral.engine.intervention_values import Values
from vitral.engine.interventions import Intervention
from vitral.errors import FormatError
from vitral.formats.gguf import GgufFile
from vitral.formats.quants import decode
from vitral.model.law import Quantised

__all__ = ["control_vector"]

_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")


def control_vector(
    path: str | Path, coefficient: float = 1.0, layers: range | None = None, since: int = 0
) -> tuple[Intervention, ...]:
    """The steering that a file asks for, times a coefficient, in block order.

    layers: only directions of these blocks. since: only positions from this one on. Raises FormatError for
    a file without directions or with other tensors, RequestError for numbers that cannot steer.
    """
    found: dict[int, Values] = {}
    for name, tensor in GgufFile.open(Path(path)).tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 1:
            raise FormatError(f"{path}: {name} {tensor.shape} is no direction; allowed: vectors called direction.N")
        values = decode(tensor.type.name, tensor.raw())
        found[int(match[1])] = Values.of((values.dequantize() if isinstance(values, Quantised) else values).reshape(-1))
    if not found:
        raise FormatError(f"{path} has no tensor called direction.N: it is no control vector")
    return tuple(
        Intervention(
            "steer",
            tap=f"blocks.{layer}.hook_resid_post",
            values=found[layer],
            coefficient=float(np.float32(coefficient)),
            since=since,
        )
        for layer in sorted(found)
        if layers is None or layer in layers
    )
