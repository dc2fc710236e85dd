"""A model without some heads or experts: the weights that carry their output are zero.

A head writes through its columns of W_O alone, an expert through its down projection alone; with
zeros there its contribution is exactly zero and no other number changes. Such a model runs in the
engine at full speed. The router still chooses a zeroed expert: its tokens get less. `reroute` takes
it from the router's choice instead, so that they get another expert; that is a different question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.formats.weights import U8, Tensor, Weights
from vitral.lens.glass import Edit
from vitral.model.spec import ModelSpec

if TYPE_CHECKING:
    from vitral.language_model import LanguageModel

__all__ = ["edits_without", "load_without", "without"]


def without(
    weights: Weights, heads: Iterable[tuple[int, int]] = (), experts: Iterable[tuple[int, int]] = ()
) -> Weights:
    """The same weights with (layer, head) and (layer, expert) silenced; the tensors are read when they are used.

    Raises RequestError for a head or an expert that the model has not, and for a weight type whose blocks
    reach over the border of two heads.
    """
    spec = weights.spec
    edits: dict[str, Callable[[U8, Tensor], U8]] = {}
    by_layer: dict[int, set[int]] = {}
    for layer, head in heads:
        _within("layer", layer, spec.n_layers)
        _within("head", head, spec.n_heads)
        by_layer.setdefault(layer, set()).add(head)
    for layer, some in by_layer.items():
        edits[f"blocks.{layer}.attn.o.weight"] = partial(_zero_columns, head_dim=spec.head_dim, heads=sorted(some))
    for layer, expert in experts:
        _within("layer", layer, spec.n_layers)
        _within(f"layer {layer} expert", expert, moe.n_experts if (moe := spec.moe_of(layer)) else 0)
        edits[f"blocks.{layer}.mlp.experts.{expert}.down.weight"] = _zero
    changed = {name: _edited(weights[name], edit) for name, edit in edits.items()}
    return Weights(spec, {**weights.tensors, **changed})


def load_without(
    path_or_name: str | Path,
    heads: Iterable[tuple[int, int]] = (),
    experts: Iterable[tuple[int, int]] = (),
    threads: int | None = None,
) -> LanguageModel:
    """Like `vitral.load`, with (layer, head) and (layer, expert) silenced: `without`, in the engine."""
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.hub import resolve
    from vitral.loading import of_checkpoint
    from vitral.provenance.gate import admit
    from vitral.settings import read_settings

    settings = read_settings()
    path = resolve(str(path_or_name))
    admit(path, settings.home, settings.verify_key)
    checkpoint = open_checkpoint(path)
    return of_checkpoint(replace(checkpoint, weights=without(checkpoint.weights, heads, experts)), threads=threads)


def edits_without(
    spec: ModelSpec,
    heads: Iterable[tuple[int, int]] = (),
    experts: Iterable[tuple[int, int]] = (),
    *,
    reroute: bool = False,
) -> dict[str, Edit]:
    """The same as edits of a `Glass`: a head's z is 0, an expert's output is 0 or, with `reroute`, it is never chosen.

    Raises RequestError as `without` does, and where `reroute` would leave a token too few experts.
    """
    silent_heads, silent_experts = list(heads), list(experts)
    edits: dict[str, Edit] = {}
    for layer in {layer for layer, _ in silent_heads}:
        _within("layer", layer, spec.n_layers)
        some = [head for at, head in silent_heads if at == layer]
        for head in some:
            _within("head", head, spec.n_heads)
        edits[f"blocks.{layer}.attn.hook_z"] = partial(_fill, index=(slice(None), some), value=0)
    for layer in {layer for layer, _ in silent_experts}:
        _within("layer", layer, spec.n_layers)
        some = sorted({expert for at, expert in silent_experts if at == layer})
        for expert in some:
            _within(f"layer {layer} expert", expert, moe.n_experts if (moe := spec.moe_of(layer)) else 0)
            if not reroute:
                edits[f"blocks.{layer}.mlp.experts.{expert}.hook_out"] = partial(_fill, index=..., value=0)
        assert spec.moe is not None
        if reroute:
            if spec.moe.n_experts - len(some) < spec.moe.n_experts_per_token:
                raise RequestError(
                    f"layer {layer} would keep fewer experts than a token needs; silence fewer, or zero them"
                )
            edits[f"blocks.{layer}.mlp.hook_router_logits"] = partial(_fill, index=(slice(None), some), value=-np.inf)
    return edits


def _fill(values: NDArray[np.generic], index: Any, value: float) -> NDArray[np.generic]:
    values[index] = value
    return values


def _edited(tensor: Tensor, edit: Callable[[U8, Tensor], U8]) -> Tensor:
    return Tensor(tensor.name, tensor.type, tensor.shape, lambda: edit(tensor.raw(), tensor))


def _zero(raw: U8, tensor: Tensor) -> U8:
    return np.zeros_like(raw)


def _zero_columns(raw: U8, tensor: Tensor, head_dim: int, heads: list[int]) -> U8:
    block, size = tensor.type.block, tensor.type.bytes_per_block
    if head_dim % block:
        raise RequestError(
            f"{tensor.name} is {tensor.type.name}, whose blocks of {block} columns hold more than one head of "
            f"{head_dim}; convert the model to a type with blocks of 32, such as Q8_0"
        )
    width = head_dim // block * size
    out = raw.copy()
    for head in heads:
        out[:, head * width : (head + 1) * width] = 0  # a scale of 0: every value of the block is 0
    return out


def _within(what: str, value: int, n: int) -> None:
    if not 0 <= value < n:
        raise RequestError(f"{what} {value} does not exist; " + (f"allowed: 0 to {n - 1}" if n else "there are none"))
