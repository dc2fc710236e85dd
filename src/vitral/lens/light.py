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
from vitral.lens.attribution import heads_toward
from vitral.lens.readings import Readings, position_axis
from vitral.lens.weights import WeightView
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

if TYPE_CHECKING:
    from vitral.language_model import LanguageModel

__all__ = ["LIGHT_AXES", "Light", "LightSet", "light_watches"]

Array = NDArray[Any]
TOP = 8  # keys kept for each head
_TOGETHER = 64  # tokens whose attribution is computed at once
_SCALE = "ln_final.hook_scale"
LIGHT_AXES = {
    "positions": 0,
    "targets": 0,
    "lens": 1,
    "heads": 2,
    "keys": 2,
    "attention": 2,
    "experts": 1,
    "shares": 1,
    "margins": 1,
}
"""The parts of a `Light`, and the axis of each along which its tokens run."""


def light_watches(spec: ModelSpec, since: int = 0) -> list[Watch]:
    """What a request has to watch for the light set, from position `since` on."""
    names = [*_streams(spec), "blocks.*.attn.hook_z", _SCALE]
    if spec.moe is not None:
        names += ["blocks.*.mlp.hook_router_logits", "blocks.*.mlp.hook_expert_weights_topk"]
        names += ["blocks.*.mlp.hook_expert_indices"]
    return [Watch(tuple(names), since=since), Watch(("blocks.*.attn.hook_pattern",), since=since, top=TOP)]


@dataclass(frozen=True, slots=True)
class Light:
    """The light set of N tokens at `positions`, of L blocks, H heads.

    targets (N,): the token after each. lens (L, N): the target's logit after each block. heads (L, H, N): what
    each head adds to it in the end. keys, attention (L, H, N, 8): the most attended positions and their
    shares, -1 and 0 where there are fewer. experts, shares (L, N, k) and margins (L, N), router logit of the last chosen less that of the
    first not chosen, of the layers that have experts: None for a dense model.
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
    """Collects one request's light set: give `watches` and `on_value` to the engine, then call `finish`.

    `advance`, called now and then while the answer grows, reduces what is complete, so that memory stays small.
    """

    def __init__(self, model: LanguageModel, since: int = 0) -> None:
        if model.weights is None or not isinstance(model.engine.forward, ShowsTaps):
            raise RequestError("this model was made without its weights at hand; open it with vitral.load")
        self.watches = light_watches(model.spec, since)
        self._spec, self._weights, self._forward = model.spec, model.weights, model.engine.forward
        self._unembedding = WeightView(model.spec, model.weights).unembedding
        self._seen = Readings()
        self._waiting = 0  # tokens that were seen and not reduced yet
        self._done: list[Light] = []

    def on_value(self, name: str, positions: NDArray[np.int64], rows: Array) -> None:
        """Keep a value; the engine calls it."""
        if name == _SCALE:
            self._waiting += len(positions)
        self._seen.on_value(name, positions, rows)

    def advance(self, ids: Sequence[int]) -> None:
        """Reduce what was seen if it is much; `ids` are prompt and answer so far."""
        if self._waiting > _TOGETHER:
            self._reduce(ids)

    def finish(self, ids: Sequence[int]) -> Light | None:
        """The light set, once the answer has ended; `ids` are prompt and answer.

        A token counts if it was read and the one after it is known, which is its target; None if there is none.
        """
        self._reduce(ids)
        return _side_by_side(self._done) if self._done else None

    def _reduce(self, ids: Sequence[int]) -> None:
        """Turn what was seen into a piece of the light set; rows whose target is not known yet stay."""
        seen, self._seen = self._seen, Readings()
        positions = seen[_SCALE].positions if _SCALE in seen else np.zeros(0, np.int64)
        n = int((positions + 1 < len(ids)).sum())
        self._waiting = 0
        for name in seen if n < len(positions) else ():
            one = seen[name]
            self.on_value(name, one.positions[n:], one.values[:, n:] if position_axis(name) else one.values[n:])
        if n:
            self._done.append(self._piece(seen, positions[:n], ids))

    def _piece(self, seen: Readings, positions: NDArray[np.int64], ids: Sequence[int]) -> Light:
        targets = np.asarray(ids, np.int64)[positions + 1]
        n, L = len(positions), self._spec.n_layers
        rows = self._unembedding.rows(targets)  # (N, C)
        directions = np.asarray(rows * self._unembedding.gain / seen[_SCALE].values[:n], np.float32)
        lens = np.empty((L, n), np.float32)
        heads = np.empty((L, self._spec.n_heads, n), np.float32)
        for i, stream in enumerate(_streams(self._spec)):
            lens[i] = self._unembedding.along(seen[stream].values[:n], rows)
            z = seen[f"blocks.{i}.attn.hook_z"].values[:n]
            heads[i] = heads_toward(self._forward, self._weights, i, z, directions)
        keys, attention = [], []
        for i in range(L):
            name = f"blocks.{i}.attn.hook_pattern"
            keys.append(_to_width(seen[name + ".indices"].values[:, :n], -1))
            attention.append(_to_width(seen[name].values[:, :n], 0))
        experts = shares = margins = None
        if self._spec.moe is not None:
            experts, shares, margins = self._routes(seen, n, self._spec.moe.n_experts_per_token)
        return Light(positions, targets, lens, heads, np.stack(keys), np.stack(attention), experts, shares, margins)

    def _routes(self, seen: Readings, n: int, k: int) -> tuple[NDArray[np.int32], F32, F32]:
        def stacked(which: str) -> Array:
            layers = [i for i in range(self._spec.n_layers) if self._spec.moe_of(i)]
            return np.stack([seen[f"blocks.{i}.mlp.hook_{which}"].values[:n] for i in layers])

        ordered = -np.sort(-stacked("router_logits"), axis=-1)
        return stacked("expert_indices"), stacked("expert_weights_topk"), ordered[..., k - 1] - ordered[..., k]


def _streams(spec: ModelSpec) -> list[str]:
    """The residual stream after each block, over its scale: the next norm has computed it."""
    return [*(f"blocks.{i}.ln1.hook_normalized" for i in range(1, spec.n_layers)), "ln_final.hook_normalized"]


def _to_width(rows: Array, nothing: float) -> Array:
    """(H, n, <= TOP) filled up to TOP: the first tokens have fewer keys."""
    return np.pad(rows, ((0, 0), (0, 0), (0, TOP - rows.shape[-1])), constant_values=nothing)


def _side_by_side(pieces: list[Light]) -> Light:
    """Pieces one after another along the axis of the tokens."""
    joined: dict[str, Any] = {}
    for name, axis in LIGHT_AXES.items():
        parts = [getattr(piece, name) for piece in pieces]
        joined[name] = None if parts[0] is None else np.concatenate(parts, axis=axis)
    return Light(**joined)
