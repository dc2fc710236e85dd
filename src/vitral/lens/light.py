"""The light set: what can be watched of every token while an answer is made, at little cost.

For each token read: the logit that the target would have after each block (target lens), the experts with
the margin at which the cut fell, the eight keys that each head attends to most, and what each head added
to the logit of the token chosen next. Values are reduced where they arise; the head attribution reads each
W_O once for many tokens, when the answer has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.forward import ShowsTaps
from vitral.engine.observe import Watch
from vitral.errors import RequestError
from vitral.formats.quants import decode
from vitral.model.law import F32, Quantised, quantise_rows, rms_scale
from vitral.model.spec import ModelSpec

if TYPE_CHECKING:
    from vitral.language_model import LanguageModel

__all__ = ["Light", "LightSet", "light_watches"]

Array = NDArray[Any]
TOP = 8  # keys kept for each head
_TOGETHER = 64  # tokens whose attribution is computed at once


def light_watches(spec: ModelSpec, since: int = 0) -> list[Watch]:
    """What a request has to watch for the light set, from position `since` on."""
    names = ["blocks.*.hook_resid_post", "blocks.*.attn.hook_z", "ln_final.hook_scale"]
    if spec.moe is not None:
        names += ["blocks.*.mlp.hook_router_logits", "blocks.*.mlp.hook_expert_weights_topk"]
        names += ["blocks.*.mlp.hook_expert_indices"]
    return [Watch(tuple(names), since=since), Watch(("blocks.*.attn.hook_pattern",), since=since, top=TOP)]


@dataclass(frozen=True, slots=True)
class Light:
    """The light set of N tokens at `positions`, of L blocks, H heads.

    targets (N,): the token after each. lens (L, N): the target's logit after each block. heads (L, H, N): what
    each head adds to it in the end. keys, attention (L, H, N, <= 8): the most attended positions and their
    shares. experts, shares (L, N, k) and margins (L, N), router logit of the last chosen less that of the
    first not chosen: None for a dense model.
    """

    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    lens: F32
    heads: F32
    keys: NDArray[np.int32]
    attention: F32
    experts: NDArray[np.int32] | None
    shares: F32 | None
    margins: F32 | None


class LightSet:
    """Collects one request's light set: give `watches` and `on_value` to the engine, then call `finish`."""

    def __init__(self, model: LanguageModel, since: int = 0) -> None:
        if model.weights is None or not isinstance(model.engine.forward, ShowsTaps):
            raise RequestError("this model was made without its weights at hand; open it with vitral.load")
        self.watches = light_watches(model.spec, since)
        self._spec, self._weights, self._forward = model.spec, model.weights, model.engine.forward
        self._seen: dict[str, list[Array]] = {}
        self._positions: list[NDArray[np.int64]] = []

    def on_value(self, name: str, positions: NDArray[np.int64], rows: Array) -> None:
        """Keep a value; the engine calls it."""
        if name == "ln_final.hook_scale":
            self._positions.append(positions)
        self._seen.setdefault(name, []).append(rows)

    def finish(self, ids: Sequence[int]) -> Light:
        """The light set, once the answer has ended; `ids` are prompt and answer.

        A token counts if the one after it is known, which is its target.
        """
        positions = np.concatenate(self._positions)
        positions = positions[positions + 1 < len(ids)]
        targets = np.asarray(ids, np.int64)[positions + 1]
        n, L = len(positions), self._spec.n_layers
        unembed = self._rows("embed.weight" if self._spec.tied_embeddings else "unembed.weight", targets)
        direction = unembed * self._weights["ln_final.weight"].dequantize()  # (N, C)
        scale = np.concatenate(self._seen["ln_final.hook_scale"])[:n]
        lens = np.empty((L, n), np.float32)
        heads = np.empty((L, self._spec.n_heads, n), np.float32)
        for i in range(L):
            stream = np.concatenate(self._seen[f"blocks.{i}.hook_resid_post"])[:n]
            lens[i] = np.einsum("nc,nc->n", stream / rms_scale(stream, self._spec.norm_eps), direction)
            heads[i] = self._heads(i, direction / scale, n)
        keys, attention = self._attention(n)
        experts = shares = margins = None
        if self._spec.moe is not None:
            experts, shares, margins = self._routes(n, self._spec.moe.n_experts_per_token)
        return Light(positions, targets, lens, heads, keys, attention, experts, shares, margins)

    def _heads(self, layer: int, direction: F32, n: int) -> F32:
        """z of each head times what W_O makes of the direction, (H, N); z as the product reads it."""
        name = f"blocks.{layer}.attn.o.weight"
        z = np.concatenate(self._seen[f"blocks.{layer}.attn.hook_z"])[:n].reshape(n, -1)
        if isinstance(decode(self._weights[name].type.name, self._weights[name].raw()[:1]), Quantised):
            codes, scales = quantise_rows(z)
            z = codes * np.repeat(scales, codes.shape[-1] // scales.shape[-1], axis=-1)
        parts = [
            self._forward.project_back(name, direction[start : start + _TOGETHER]) for start in range(0, n, _TOGETHER)
        ]
        back = np.concatenate(parts) if parts else np.zeros_like(z)
        shape = (n, self._spec.n_heads, self._spec.head_dim)
        return np.asarray(np.einsum("nhd,nhd->hn", z.reshape(shape), back.reshape(shape)))

    def _attention(self, n: int) -> tuple[NDArray[np.int32], F32]:
        keys, shares = [], []
        for i in range(self._spec.n_layers):
            name = f"blocks.{i}.attn.hook_pattern"
            keys.append(_wide(self._seen[name + ".indices"], -1)[:, :n])
            shares.append(_wide(self._seen[name], 0)[:, :n])
        return np.stack(keys), np.stack(shares)

    def _routes(self, n: int, k: int) -> tuple[NDArray[np.int32], F32, F32]:
        def stacked(which: str) -> Array:
            names = [f"blocks.{i}.mlp.hook_{which}" for i in range(self._spec.n_layers)]
            return np.stack([np.concatenate(self._seen[name])[:n] for name in names])

        ordered = -np.sort(-stacked("router_logits"), axis=-1)
        return stacked("expert_indices"), stacked("expert_weights_topk"), ordered[..., k - 1] - ordered[..., k]

    def _rows(self, name: str, which: NDArray[np.int64]) -> F32:
        tensor = self._weights[name]
        values = decode(tensor.type.name, np.ascontiguousarray(tensor.raw()[which]))
        return values.dequantize() if isinstance(values, Quantised) else values.reshape(len(which), -1)


def _wide(parts: list[Array], nothing: float) -> Array:
    """(H, n, k) of all steps side by side; the first tokens have fewer than TOP keys."""
    most = max(part.shape[-1] for part in parts)
    padded = [np.pad(p, ((0, 0), (0, 0), (0, most - p.shape[-1])), constant_values=nothing) for p in parts]
    return np.concatenate(padded, axis=1)
