"""Direct logit attribution: which part of the model wrote a logit. The parts add up to it.

DLA_c(t, t') = (x_c * gain / scale) . (u_t - u_t'), the scale of the final norm frozen (Elhage et al.
2021; arXiv 2211.00593). On quantised models the law rounds what it multiplies to eight bits: inside
the model we split the rounded values, so that heads, neurons and experts add up to what their layer
wrote; what rounding adds before the unembedding is a part of its own, `rounding`, computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitral.engine.forward import ShowsTaps
from vitral.errors import RequestError
from vitral.formats.weights import Weights
from vitral.lens.finding import Finding
from vitral.lens.glass import Values
from vitral.lens.rounding import is_quantised, rounded
from vitral.lens.weights import WeightView
from vitral.model.law import F32

__all__ = ["Attribution", "attribute", "expert_outputs", "head_results", "heads_toward", "neuron_attribution"]

F64 = NDArray[np.float64]
_TOGETHER = 64  # directions that go back through a matrix at once


@dataclass(frozen=True, slots=True)
class Attribution(Finding):
    """The parts of a logit, or of the difference of two, after one token.

    embed: the token's own embedding. heads: (L, H). mlps: (L,). experts: (L, E), whose rows sum to
    `mlps`, 0 in layers without experts; None for a dense model. rounding: what the eight bits add in which the unembedding reads its
    input, 0 without quantised weights. rest: what float32 sums leave, noise.
    embed + heads + mlps + rounding + rest = logit.
    """

    position: int
    target: int
    contrast: int | None
    logit: float
    embed: float
    heads: F64
    mlps: F64
    experts: F64 | None
    rounding: float
    rest: float


def head_results(values: Values, weights: WeightView, layer: int) -> F32:
    """What each head adds to the residual stream, (T, H, C): z_h W_O^h; over heads they sum to hook_attn_out."""
    return weights.head_results(layer, _value(values, f"blocks.{layer}.attn.hook_z"))


def heads_toward(model: ShowsTaps, weights: Weights, layer: int, z: F32, directions: F32) -> F32:
    """What each head adds along a direction (n, C) for each of n tokens, (H, n): z (n, H, D) times what W_O makes of it.

    The engine reads W_O backwards, once for all of up to 64 directions: no head's result (n, H, C) is formed.
    """
    name = f"blocks.{layer}.attn.o.weight"
    n, H, D = z.shape
    flat = z.reshape(n, H * D)
    flat = rounded(flat) if is_quantised(weights[name]) else flat
    back = [model.project_back(name, directions[i : i + _TOGETHER]) for i in range(0, n, _TOGETHER)]
    return np.asarray(np.einsum("nhd,nhd->hn", flat.reshape(n, H, D), np.concatenate(back).reshape(n, H, D)))


def expert_outputs(values: Values, weights: WeightView, layer: int) -> F32:
    """What each expert adds to the residual stream, (T, E, C): its weight times its output, 0 where not chosen.

    Over experts they sum to hook_mlp_out. RequestError for a layer without experts.
    """
    moe = weights.spec.moe_of(layer)
    if moe is None:
        raise RequestError(f"layer {layer} has no experts; ask for neurons or the whole layer")
    name = f"blocks.{layer}.mlp."
    chosen = np.asarray(values[name + "hook_expert_indices"])  # (T, k)
    share = _value(values, name + "hook_expert_weights_topk")  # (T, k)
    out = np.zeros((len(chosen), moe.n_experts, weights.spec.dim), np.float32)
    for e in np.unique(chosen):
        token, rank = np.nonzero(chosen == e)
        out[token, e] = share[token, rank, None] * _value(values, f"{name}experts.{e}.hook_out")
    return out


def attribute(
    values: Values, weights: WeightView, target: int, contrast: int | None = None, position: int = -1
) -> Attribution:
    """Split the logit of `target` after a token, or its lead over `contrast`, among the parts that wrote it.

    `values` has hook_embed, hook_z, hook_mlp_out of all layers, hook_resid_post of the last, ln_final.hook_scale,
    unembed.hook_out, and for experts their indices, weights and outputs.
    """
    spec = weights.spec
    direction = _direction(values, weights, target, contrast, position)
    logits = _value(values, "unembed.hook_out")[position].astype(np.float64)
    logit = logits[target] - (0 if contrast is None else logits[contrast])
    embed = float(_value(values, "hook_embed")[position] @ direction)
    heads = np.stack([head_results(values, weights, i)[position] @ direction for i in range(spec.n_layers)])
    mlps = np.stack([_value(values, f"blocks.{i}.hook_mlp_out")[position] @ direction for i in range(spec.n_layers)])
    experts = None
    if spec.moe is not None:
        experts = np.zeros((spec.n_layers, spec.moe.n_experts))
        for i in range(spec.moe.n_leading_dense, spec.n_layers):
            experts[i] = expert_outputs(values, weights, i)[position] @ direction
    place = position % len(_value(values, "hook_embed"))
    last = _value(values, f"blocks.{spec.n_layers - 1}.hook_resid_post")[[position]]
    ids = [target] if contrast is None else [target, contrast]
    each = weights.unembedding.rounding(np.repeat(last, len(ids), axis=0), ids)
    rounding = float(each[0] - each[1:].sum())
    left = float(logit - embed - heads.sum() - mlps.sum() - rounding)
    return Attribution(place, target, contrast, float(logit), embed, heads, mlps, experts, rounding, left)


def neuron_attribution(
    values: Values,
    weights: WeightView,
    layer: int,
    target: int,
    contrast: int | None = None,
    position: int = -1,
    *,
    expert: int | None = None,
) -> F64:
    """The same for each neuron, (F,): post_n W_down^n; they sum to the layer's part.

    In a layer with experts, those of one expert, times its mixing weight: they sum to the expert's part, and are 0
    if the token did not go to it. `values` then has the expert's hook_post, and indices and weights of the layer.
    """
    moe = weights.spec.moe_of(layer)
    name = f"blocks.{layer}.mlp."
    direction = _direction(values, weights, target, contrast, position)
    if moe is None:
        if expert is not None:
            raise RequestError(f"layer {layer} has no experts; leave expert out")
        post = weights.as_multiplied(name + "down.weight", _value(values, name + "hook_post"))[position]
        return np.asarray(post * (direction @ weights.matrix(name + "down.weight")), np.float64)
    if expert is None or not 0 <= expert < moe.n_experts:
        raise RequestError(
            f"expert is {expert}; layer {layer} has the experts 0 to {moe.n_experts - 1}, name one: "
            "neurons of different experts have no common order"
        )
    chosen = np.asarray(values[name + "hook_expert_indices"]) == expert  # (T, k)
    if not chosen[position].any():
        return np.zeros(weights.spec.hidden_dim)
    share = float(_value(values, name + "hook_expert_weights_topk")[position][chosen[position]][0])
    row = int(chosen[: position % len(chosen)].any(axis=1).sum())  # tokens that went to it before
    down = f"{name}experts.{expert}.down.weight"
    post = weights.as_multiplied(down, _value(values, f"{name}experts.{expert}.hook_post")[[row]])[0]
    return np.asarray(share * post * (direction @ weights.matrix(down)), np.float64)


def _direction(values: Values, weights: WeightView, target: int, contrast: int | None, position: int) -> F64:
    """Gain over scale, times the unembedding's direction, (C,)."""
    u = weights.W_U([target] if contrast is None else [target, contrast]).astype(np.float64)
    toward = u[:, 0] - (0 if contrast is None else u[:, 1])
    scale = float(_value(values, "ln_final.hook_scale")[position, 0])
    return np.asarray(toward * weights.gain("ln_final") / scale, np.float64)


def _value(values: Values, name: str) -> F32:
    if name not in values:
        raise RequestError(f"{name} was not recorded; record it, or everything")
    return np.asarray(values[name], np.float32)
