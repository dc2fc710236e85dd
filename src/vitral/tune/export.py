"""From the trained model back to a checkpoint: weights merged in float32, untouched tensors byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vitral.errors import NumericalError
from vitral.formats.canonical import Checkpoint
from vitral.formats.convert import TokenizerFiles, convert
from vitral.formats.quants import TYPES
from vitral.formats.weights import U8, Tensor, Weights
from vitral.tune.adapters import Lora
from vitral.tune.forward import Transformer

__all__ = ["computed", "in_memory", "merged_checkpoint", "write_merged"]


def merged_checkpoint(model: Transformer, base: Checkpoint) -> Checkpoint:
    """The base with the tuning in it. A tensor that did not change stays as it is stored, quantised or not.

    Adapters are merged into the base's own float32 values, whatever the model was trained in.
    Raises NumericalError for a weight that is not finite.
    """
    adapters = {name: product.adapter for name, product in model.linears()}
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, stored in base.weights.items():
        adapter = adapters.get(name.removesuffix(".weight"))
        now = parameters[name].detach()
        if isinstance(adapter, Lora):
            tensors[name] = computed(name, partial(_merged, adapter, stored), stored.shape)
        elif torch.equal(now, torch.tensor(stored.dequantize()).to(now.dtype)):
            tensors[name] = stored
        else:
            tensors[name] = in_memory(name, now)
    return replace(base, weights=Weights(base.spec, tensors))


def in_memory(name: str, value: torch.Tensor) -> Tensor:
    """A torch tensor as a float32 tensor of a checkpoint."""
    return computed(name, lambda: value.detach().float(), tuple(value.shape))


def write_merged(
    model: Transformer,
    base: Checkpoint,
    path: Path,
    layout: Literal["gguf", "safetensors"],
    type: str | None = None,
    tokenizer: TokenizerFiles | None = None,
    progress: Callable[[int, int], object] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the merged model: one GGUF file, or a folder of safetensors.

    `type` is a weight type or a mix for GGUF, F32, F16 or BF16 for safetensors; None gives float32 to
    what changed and keeps the rest. `notes` say where it comes from (`record.tuned_from`).
    """
    convert(merged_checkpoint(model, base), path, layout, type, progress=progress, tokenizer=tokenizer, notes=notes)


def _merged(adapter: Lora, stored: Tensor) -> torch.Tensor:
    with torch.no_grad():
        return adapter.merged(torch.tensor(stored.dequantize())).float()


def computed(name: str, value: Callable[[], torch.Tensor], shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor of a checkpoint whose values are computed when they are read; `value` must be float32."""

    def read() -> U8:
        array = np.ascontiguousarray(value().numpy())
        if not np.isfinite(array).all():
            raise NumericalError(f"{name} holds numbers that are not finite; nothing is written")
        return np.atleast_2d(array).view(np.uint8)

    return Tensor(name, TYPES["F32"], shape, read)
