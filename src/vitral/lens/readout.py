"""Reads a text once and reduces each layer's values as they arise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.forward import ShowsTaps
from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.engine.request import Finished, SamplingParams
from vitral.language_model import LanguageModel
from vitral.lens.attribution import heads_toward
from vitral.lens.maps import AttentionMaps
from vitral.lens.statistics import softmax
from vitral.lens.unembedding import Unembedding
from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.native import top_rows

__all__ = ["Reader", "Readout", "read"]

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
_WINDOW = (
    "hook_embed",
    "blocks.*.attn.hook_z",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "ln_final.hook_scale",
)
_ROUTES = ("blocks.*.mlp.hook_expert_indices", "blocks.*.mlp.hook_expert_weights_topk")


@dataclass(frozen=True)
class Readout:
    """One reading of T tokens; W of them, the window, are looked at closely.

    logits (T, V). targets (W,): the token whose logit the attributions explain. lens: for each layer
    the ids and probabilities of its candidates (W, n), and the target's probability (W,).
    components (2 L + 1, W): embedding, then attention and feed-forward part of each layer. rounding (W,):
    what the eight bits add in which the unembedding reads its input. heads (L, H, W). experts: chosen indices and weights (L, T, k) each, of the layers
    that have experts, or None.
    """

    logits: F32
    targets: I32
    lens_ids: I32
    lens_probs: F64
    lens_target: F64
    components: F64
    rounding: F64
    heads: F32
    attention: dict[str, Any]
    experts: tuple[I32, F32] | None


class Reader:
    """Collects what a readout is made of: give `watches`, `on_value` and `on_logits` to the engine, then call `readout`.

    n_tokens: how many the text has; those from `start` on are looked at. progress: called with (tokens read by a
    layer, tokens times layers).
    """

    def __init__(
        self, spec: ModelSpec, n_tokens: int, start: int, progress: Callable[[int, int], object] | None = None
    ) -> None:
        self.watches = [Watch(("blocks.*.attn.hook_pattern",)), Watch(_WINDOW, since=start)]
        if spec.moe:
            self.watches.append(Watch(_ROUTES))
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._maps = AttentionMaps(spec.n_layers, spec.n_heads, n_tokens)
        self._logits = np.empty((n_tokens, spec.vocab_size), np.float32)
        self._start, self._progress = start, progress
        self._read, self._all = 0, n_tokens * spec.n_layers

    def on_value(self, name: str, places: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Keep a value; the engine calls it."""
        if name.endswith("hook_pattern"):
            self._maps.add(int(name.split(".")[1]), int(places[0]), rows)
            self._read += len(places)
            if self._progress is not None:
                self._progress(self._read, self._all)
        else:
            self._parts.setdefault(name, []).append(rows)

    def on_logits(self, position: int, row: F32) -> None:
        """Keep the logits after a token; the engine calls it."""
        self._logits[position] = row

    def readout(self, model: LanguageModel, unembedding: Unembedding, top: int, targets: I32 | None = None) -> Readout:
        """Once all was read. targets (W,): whose logits to explain; the model's own choices if not given."""
        kept = {name: np.concatenate(some) for name, some in self._parts.items()}
        return _reduced(model, unembedding, kept, self._logits, self._maps, self._start, top, targets)


def read(
    model: LanguageModel,
    unembedding: Unembedding,
    ids: Sequence[int],
    *,
    start: int,
    top: int,
    targets: I32 | None = None,
    interventions: Sequence[Intervention] = (),
    progress: Callable[[int, int], object] | None = None,
) -> Readout:
    """Run the text through the model and look at the tokens from `start` on; parameters as for `Reader`."""
    reader = Reader(model.spec, len(ids), start, progress)
    with model.engine.answer(
        ids,
        SamplingParams(max_tokens=0),
        watch=reader.watches,
        on_value=reader.on_value,
        on_logits=reader.on_logits,
        interventions=interventions,
    ) as answer:
        for event in answer:
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
    return reader.readout(model, unembedding, top, targets)


def _reduced(
    model: LanguageModel,
    unembedding: Unembedding,
    kept: dict[str, NDArray[Any]],
    logits: F32,
    maps: AttentionMaps,
    start: int,
    top: int,
    targets: I32 | None,
) -> Readout:
    assert model.weights is not None, "the unembedding was made from them"
    assert isinstance(model.engine.forward, ShowsTaps), "its values were just read"
    forward, weights, spec = model.engine.forward, model.weights, model.spec
    layers = range(spec.n_layers)
    wanted = logits[start:]
    targets = wanted.argmax(-1).astype(np.int32) if targets is None else targets
    lens = [_lens(unembedding.logits(kept[f"blocks.{i}.hook_resid_post"]), targets, top) for i in layers[:-1]]
    lens.append(_lens(wanted, targets, top))  # the last layer's view is the model's own answer
    directions = unembedding.directions(targets, kept["ln_final.hook_scale"])
    adds = ["hook_embed", *(f"blocks.{i}.hook_{part}_out" for i in layers for part in ("attn", "mlp"))]
    return Readout(
        logits=logits,
        targets=targets,
        lens_ids=np.stack([one[0] for one in lens]),
        lens_probs=np.stack([one[1] for one in lens]),
        lens_target=np.stack([one[2] for one in lens]),
        components=np.stack([np.einsum("wc,wc->w", directions, kept[name], dtype=np.float64) for name in adds]),
        rounding=unembedding.rounding(kept[f"blocks.{layers[-1]}.hook_resid_post"], targets),
        heads=np.stack(
            [heads_toward(forward, weights, i, kept[f"blocks.{i}.attn.hook_z"], directions) for i in layers]
        ),
        attention=maps.document(),
        experts=(
            np.stack([kept[f"blocks.{i}.mlp.hook_expert_indices"] for i in layers if spec.moe_of(i)]),
            np.stack([kept[f"blocks.{i}.mlp.hook_expert_weights_topk"] for i in layers if spec.moe_of(i)]),
        )
        if spec.moe
        else None,
    )


def _lens(logits: F32, targets: I32, top: int) -> tuple[I32, F64, F64]:
    """Candidates (W, top), their probabilities, and the targets' (W,)."""
    probs = softmax(logits)
    found = top_rows(logits, top)
    return found, np.take_along_axis(probs, found, 1), probs[np.arange(len(probs)), targets]
