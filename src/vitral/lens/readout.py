"""Reads a text once and reduces each layer's values as they arise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.engine.request import Finished, SamplingParams
from vitral.formats.weights import Weights
from vitral.language_model import LanguageModel
from vitral.lens.maps import AttentionMaps
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

__all__ = ["Projection", "Readout", "read"]

I32 = NDArray[np.int32]
_WINDOW = (
    "hook_embed",
    "blocks.*.attn.hook_z",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "ln_final.hook_scale",
)
_ROUTES = ("blocks.*.mlp.hook_expert_indices", "blocks.*.mlp.hook_expert_weights_topk")


class Projection:
    """The way from the residual stream to logits: gain (C,) and unembedding (V, C), dequantised."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self.gain = weights["ln_final.weight"].dequantize().reshape(-1)
        self.unembed = weights["embed.weight" if spec.tied_embeddings else "unembed.weight"].dequantize()
        self._weights = weights

    def logits(self, resid: F32) -> F32:
        """What a residual stream (W, C) would say if the model ended here: (W, V)."""
        scale = np.sqrt(np.mean(np.square(resid, dtype=np.float64), -1, keepdims=True) + self.spec.norm_eps)
        return np.asarray((resid / scale * self.gain).astype(np.float32) @ self.unembed.T)

    def directions(self, ids: I32, scale: F32) -> F32:
        """What each of W residual streams is multiplied with to give the logit of its token: (W, C)."""
        return np.asarray(self.unembed[ids] * self.gain / scale)

    def output(self, layer: int) -> F32:
        """The attention output matrix of a layer by heads: (C, H, D)."""
        matrix = self._weights[f"blocks.{layer}.attn.o.weight"].dequantize()
        return matrix.reshape(self.spec.dim, self.spec.n_heads, self.spec.head_dim)


@dataclass(frozen=True)
class Readout:
    """One reading of T tokens; W of them, the window, are looked at closely.

    logits (T, V). targets (W,): the token whose logit the attributions explain. lens: for each layer
    the ids and probabilities of its candidates (W, n), and the target's probability (W,).
    components (2 L + 1, W): embedding, then attention and feed-forward part of each layer.
    heads (L, H, W). experts: chosen indices and weights (L, T, k) each, or None.
    """

    logits: F32
    targets: I32
    lens_ids: I32
    lens_probs: F32
    lens_target: F32
    components: F32
    heads: F32
    attention: dict[str, Any]
    experts: tuple[I32, F32] | None


def read(
    model: LanguageModel,
    projection: Projection,
    ids: Sequence[int],
    *,
    start: int,
    top: int,
    targets: I32 | None = None,
    interventions: Sequence[Intervention] = (),
    progress: Callable[[int, int], object] | None = None,
) -> Readout:
    """Run the text through the model and look at the tokens from `start` on.

    targets (W,): whose logits to explain; the model's own choices if not given. progress: called with
    (tokens read by a layer, tokens times layers).
    """
    spec = projection.spec
    parts: dict[str, list[NDArray[Any]]] = {}
    maps = AttentionMaps(spec.n_layers, spec.n_heads, len(ids))
    logits = np.empty((len(ids), spec.vocab_size), np.float32)
    read_so_far = 0

    def see(name: str, places: NDArray[np.int64], rows: NDArray[Any]) -> None:
        nonlocal read_so_far
        if name.endswith("hook_pattern"):
            maps.add(int(name.split(".")[1]), int(places[0]), rows)
            read_so_far += len(places)
            if progress is not None:
                progress(read_so_far, len(ids) * spec.n_layers)
        else:
            parts.setdefault(name, []).append(rows)

    def keep(position: int, row: F32) -> None:
        logits[position] = row

    watch = [Watch(("blocks.*.attn.hook_pattern",)), Watch(_WINDOW, since=start)]
    if spec.moe:
        watch.append(Watch(_ROUTES))
    params = SamplingParams(max_tokens=0)
    with model.engine.answer(
        ids, params, watch=watch, on_value=see, on_logits=keep, interventions=interventions
    ) as answer:
        for event in answer:
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
    kept = {name: np.concatenate(some) for name, some in parts.items()}
    return _reduced(kept, projection, logits, maps, start, top, targets)


def _reduced(
    kept: dict[str, NDArray[Any]],
    projection: Projection,
    logits: F32,
    maps: AttentionMaps,
    start: int,
    top: int,
    targets: I32 | None,
) -> Readout:
    spec, layers = projection.spec, range(projection.spec.n_layers)
    wanted = logits[start:]
    targets = wanted.argmax(-1).astype(np.int32) if targets is None else targets
    lens = [_lens(projection.logits(kept[f"blocks.{i}.hook_resid_post"]), targets, top) for i in layers[:-1]]
    lens.append(_lens(wanted, targets, top))  # the last layer's view is the model's own answer
    directions = projection.directions(targets, kept["ln_final.hook_scale"])
    adds = ["hook_embed", *(f"blocks.{i}.hook_{part}_out" for i in layers for part in ("attn", "mlp"))]
    return Readout(
        logits=logits,
        targets=targets,
        lens_ids=np.stack([one[0] for one in lens]),
        lens_probs=np.stack([one[1] for one in lens]),
        lens_target=np.stack([one[2] for one in lens]),
        components=np.stack([np.einsum("wc,wc->w", directions, kept[name]) for name in adds]),
        heads=np.stack([_heads(directions, projection.output(i), kept[f"blocks.{i}.attn.hook_z"]) for i in layers]),
        attention=maps.document(),
        experts=(
            np.stack([kept[f"blocks.{i}.mlp.hook_expert_indices"] for i in layers]),
            np.stack([kept[f"blocks.{i}.mlp.hook_expert_weights_topk"] for i in layers]),
        )
        if spec.moe
        else None,
    )


def _heads(directions: F32, output: F32, z: F32) -> F32:
    """What each head adds to the logits: (H, W). The direction goes back through the output matrix first."""
    n_rows = len(directions)
    read = (directions @ output.reshape(len(output), -1)).reshape(n_rows, z.shape[1], z.shape[2])  # (W, H, D)
    return np.asarray(np.einsum("whd,whd->hw", read, z))


def _lens(logits: F32, targets: I32, top: int) -> tuple[I32, F32, F32]:
    """Candidates (W, top), their probabilities, and the targets' (W,)."""
    probs = softmax(logits)
    found = np.argpartition(-probs, top - 1, axis=-1)[:, :top]
    order = np.argsort(-np.take_along_axis(probs, found, 1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, 1)
    return found.astype(np.int32), np.take_along_axis(probs, found, 1), probs[np.arange(len(probs)), targets]


def softmax(logits: F32) -> F32:
    """Probabilities along the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))
