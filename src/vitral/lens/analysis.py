"""Values of a recorded answer, computed anew by the law: lens, attention and routes, with controls beside them.

One forward pass of `model.reference` over prompt and answer gives every value, and the logits of every step with
them: their digests tie the values to the bits of the answer. The reference is the law itself, so machine, instruction
set and thread count change nothing; it is also slow (about a second a token for 135M parameters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.digest import logits_digest
from vitral.engine.interventions import Intervention, check_interventions
from vitral.engine.observe import reference_taps
from vitral.errors import RequestError
from vitral.lens.unembedding import Unembedding
from vitral.model import law
from vitral.model.law import F32, KV_DEFAULT, KvType, LowRank, Quantised
from vitral.model.reference import Cache, Reference
from vitral.model.spec import ModelSpec

__all__ = ["MOST_TOP", "Analysis", "LawView", "analyse"]

MOST_TOP = 64


@dataclass(frozen=True, slots=True)
class Analysis:
    """What to compute, as data.

    lens: how many of the likeliest tokens to name at each layer, 0 for no lens. attention: how many of the most seen
    positions to name for each head, 0 for none. routes: which experts were chosen and by how much. layers: which
    blocks, None for all.

    >>> Analysis(lens=3, layers=(0, 2)).to_json()
    {'lens': 3, 'attention': 0, 'routes': False, 'layers': [0, 2]}
    """

    lens: int = 0
    attention: int = 0
    routes: bool = False
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("lens", "attention"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= MOST_TOP:
                raise RequestError(f"{name} is {value!r}; allowed: a whole number from 0 to {MOST_TOP}")
        if type(self.routes) is not bool:
            raise RequestError(f"routes is {self.routes!r}; allowed: true or false")
        if self.layers is not None and (
            not all(type(layer) is int and layer >= 0 for layer in self.layers)
            or list(self.layers) != sorted(set(self.layers))
        ):
            raise RequestError(f"layers is {self.layers!r}; allowed: block numbers from 0, ascending, each once")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "layers": None if self.layers is None else list(self.layers)}

    @classmethod
    def from_json(cls, data: Any) -> Analysis:
        """The analysis again; RequestError for an unknown key or value."""
        known = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != known:
            raise RequestError(f"an analysis has the keys {', '.join(sorted(known))} and no others")
        layers = data["layers"]
        if layers is not None and not isinstance(layers, list):
            raise RequestError(f"layers is {layers!r:.80}; allowed: null, or a list of block numbers")
        return cls(**{**data, "layers": None if layers is None else tuple(layers)})


@dataclass(frozen=True, slots=True)
class LawView:
    """A model as the law computes it: specification, weights, adapter, the cache's type and the context's length."""

    spec: ModelSpec
    weights: Mapping[str, Quantised | F32]
    context_length: int
    kv_type: KvType = KV_DEFAULT
    adapter: Mapping[str, LowRank] | None = None


def analyse(
    glass: LawView,
    prompt: Sequence[int],
    answer: Sequence[int],
    analysis: Analysis,
    interventions: Sequence[Intervention] = (),
) -> dict[str, Any]:
    """The values of one answer: `logits` (a digest for each step) and what `analysis` asks, by layer and step.

    `interventions` changed the run, and change it again.

    Step t is where token t of the answer was chosen: position len(prompt) - 1 + t. Numbers are float32, exactly.
    Raises RequestError for layers, experts, taps or ids that the model does not have.
    """
    spec = glass.spec
    check_interventions(interventions, spec)
    layers = _checked(spec, prompt, answer, analysis)
    if not answer:
        return {"logits": []}
    seen: dict[str, NDArray[Any]] = {}
    first = len(prompt) - 1
    wanted = {name.format(layer): axis for layer in layers for name, axis in _wanted(analysis)}

    def see(name: str, value: NDArray[np.generic]) -> None:
        if name in wanted:
            seen[name] = value[:, first:] if wanted[name] else value[first:]

    ids = [*prompt, *answer[:-1]]
    reference = Reference(spec, glass.weights, glass.context_length, glass.adapter)
    on_tap = reference_taps(interventions, see=see, head_result=reference.head_result) if interventions else see
    logits = reference.forward(ids, Cache(spec, glass.kv_type), on_tap)[first:]  # (T, V)
    values: dict[str, Any] = {"logits": [logits_digest(row) for row in logits]}
    if analysis.lens:
        placebo = _placebo(answer, spec.vocab_size)
        values["lens"] = [
            _lens(glass, layer, seen[f"blocks.{layer}.hook_resid_post"], answer, placebo, analysis.lens)
            for layer in layers
        ]
    if analysis.attention:
        values["attention"] = [
            _attention(layer, seen[f"blocks.{layer}.attn.hook_pattern"], first, analysis.attention) for layer in layers
        ]
    if analysis.routes:
        values["routes"] = [
            _routes(
                layer,
                seen[f"blocks.{layer}.mlp.hook_router_logits"],
                seen[f"blocks.{layer}.mlp.hook_expert_indices"],
                seen[f"blocks.{layer}.mlp.hook_expert_weights_topk"],
            )
            for layer in layers
            if spec.moe_of(layer) is not None
        ]
    return values


def _checked(spec: ModelSpec, prompt: Sequence[int], answer: Sequence[int], analysis: Analysis) -> Sequence[int]:
    layers = range(spec.n_layers) if analysis.layers is None else analysis.layers
    if any(layer >= spec.n_layers for layer in layers):
        raise RequestError(f"layers is {list(layers)}; this model has the blocks 0 to {spec.n_layers - 1}")
    if analysis.routes and spec.moe is None:
        raise RequestError("routes were asked of a model that has no experts; leave routes out")
    strange = next((i for i in (*prompt, *answer) if type(i) is not int or not 0 <= i < spec.vocab_size), None)
    if strange is not None or not prompt:
        raise RequestError(f"token {strange!r} is not in the model's vocabulary of {spec.vocab_size}")
    return layers


def _wanted(analysis: Analysis) -> list[tuple[str, int]]:
    """Names of the taps, and the axis along which their positions run."""
    names = [("blocks.{}.hook_resid_post", 0)] if analysis.lens else []
    names += [("blocks.{}.attn.hook_pattern", 1)] if analysis.attention else []
    kinds = ("router_logits", "expert_indices", "expert_weights_topk")
    return names + ([(f"blocks.{{}}.mlp.hook_{kind}", 0) for kind in kinds] if analysis.routes else [])


def _placebo(answer: Sequence[int], vocab_size: int) -> list[int]:
    """For each step a token that has nothing to do with it, drawn by counter: the same everywhere."""
    draws = np.random.Philox(key=np.array([0x506C, 0], np.uint64)).random_raw(len(answer))
    return [int(draw % np.uint64(vocab_size)) for draw in np.asarray(draws, np.uint64)]


def _lens(
    glass: LawView, layer: int, x: F32, answer: Sequence[int], placebo: Sequence[int], top: int
) -> dict[str, Any]:
    """What the unembedding reads in the residual stream behind a block (logit lens)."""
    rows = Unembedding.by_law(glass.spec, glass.weights).logits(x)  # (T, V)
    best = law.top_k(rows, top)
    steps = [
        {
            "target": float(row[token]),
            "rank": int(np.count_nonzero(row > row[token])),
            "top": [[int(i), float(row[i])] for i in best[t]],
            "control": [other, float(row[other])],
        }
        for t, (row, token, other) in enumerate(zip(rows, answer, placebo, strict=True))
    ]
    return {"layer": layer, "steps": steps}


def _attention(layer: int, pattern: F32, first: int, top: int) -> dict[str, Any]:
    """The most seen positions of each head (H, T, S). control: what each would get if all were seen alike."""
    steps = []
    for t in range(pattern.shape[1]):
        seen = pattern[:, t, : first + t + 1]  # (H, S)
        best = law.top_k(seen, top)
        heads = [[[int(s), float(row[s])] for s in places] for row, places in zip(seen, best, strict=True)]
        steps.append({"heads": heads, "control": float(np.float32(1) / np.float32(seen.shape[1]))})
    return {"layer": layer, "steps": steps}


def _routes(layer: int, logits: F32, chosen: NDArray[np.int32], shares: F32) -> dict[str, Any]:
    """The chosen experts with their weights. cut: the last chosen logit less the best that was not, None if all were.

    control: an expert's share if all were chosen alike.
    """
    n = logits.shape[1]
    steps = [
        {
            "experts": [[int(e), float(share)] for e, share in zip(chosen[t], shares[t], strict=True)],
            "cut": float(row[chosen[t, -1]] - rest.max()) if (rest := np.delete(row, chosen[t])).size else None,
            "control": float(np.float32(1) / np.float32(n)),
        }
        for t, row in enumerate(logits)
    ]
    return {"layer": layer, "steps": steps}
