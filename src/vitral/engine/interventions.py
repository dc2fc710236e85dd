"""Interventions as data: what to change in a forward pass, in a document that can be hashed and signed.

Each names a tap (`vitral.model.taps`) or a layer, and which rows of it: positions of the request, heads,
columns. The kinds:

    replace             the values given; for all positions, or one entry for each of `positions`
    mean                the same, one mean for all positions        (mean ablation)
    resample, patch     the same, one entry for each position       (values of other prompts, of another run)
    zero                zeros
    steer               adds `coefficient` times the values
    freeze_attention    replaces rows of `attn.hook_pattern`
    knock_out           a layer's heads or neurons give zero; its experts cannot be chosen any more
    force_experts       these are chosen, in this order, whatever the router says
    weigh_experts       mixing weights of these times `factors`, the others as they are
    bias_experts        `factors` are added to the router's logits of these

They apply in the order of the list; what is watched is seen after them. Nothing of a row depends on
another row, so the numeric law holds: an intervened request has the same bits alone, in a batch, in
any chunks, in the engine and in the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import rfc8785
from numpy.typing import NDArray

from vitral.engine.intervention_values import Values
from vitral.errors import RequestError
from vitral.model.spec import ModelSpec
from vitral.model.taps import RESULT, is_attention, row_shape, taps

__all__ = ["VERSION", "Intervention", "check_interventions", "digest", "from_document", "to_document"]

VERSION = 1
Array = NDArray[Any]

_SCOPE = {"positions", "since"}
_PLACE = {"tap", *_SCOPE, "heads", "columns"}
_FIELDS: dict[str, tuple[set[str], set[str]]] = {  # kind: what it must have, what it may have besides
    "replace": ({"tap", "values"}, _PLACE),
    "mean": ({"tap", "values"}, _PLACE),
    "resample": ({"tap", "values", "positions"}, _PLACE),
    "patch": ({"tap", "values", "positions"}, _PLACE),
    "zero": ({"tap"}, _PLACE),
    "steer": ({"tap", "values"}, _PLACE | {"coefficient"}),
    "freeze_attention": ({"layer", "values", "positions"}, _SCOPE | {"heads"}),
    "knock_out": ({"layer"}, _SCOPE | {"heads", "neurons", "experts"}),
    "force_experts": ({"layer", "experts"}, _SCOPE),
    "weigh_experts": ({"layer", "experts", "factors"}, _SCOPE),
    "bias_experts": ({"layer", "experts", "factors"}, _SCOPE),
}
_LISTS = ("positions", "heads", "columns", "neurons", "experts")


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change. Checks itself, and against a model with `check`; RequestError says what does not fit.

    positions: absolute, ascending, from 0; None for all. since: only positions from this one on.
    heads, columns: entries of the head axis and of the last axis (of a pattern: key positions).
    values: a number, one row, or one row for each of `positions`.

    >>> steer = Intervention("steer", tap="blocks.0.hook_resid_post", values=Values.of([1, 0]), coefficient=2.0)
    >>> Intervention.from_json(steer.to_json()) == steer
    True
    """

    kind: str
    tap: str | None = None
    layer: int | None = None
    positions: tuple[int, ...] | None = None
    since: int = 0
    heads: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None
    values: Values | None = None
    coefficient: float = 1.0
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise RequestError(f"no intervention is called {self.kind!r:.40}; allowed: {', '.join(_FIELDS)}")
        needed, allowed = _FIELDS[self.kind]
        given = {f.name for f in fields(self) if f.name != "kind" and getattr(self, f.name) != f.default}
        for name in sorted(needed - given):
            raise RequestError(f"{self.kind} wants {name}")
        for name in sorted(given - needed - allowed):
            raise RequestError(f"{self.kind} takes no {name}; allowed: {', '.join(sorted(needed | allowed))}")
        for name in _LISTS:
            _naturals(self.kind, name, getattr(self, name), in_order=name != "experts")
        _naturals(self.kind, "since", (self.since,), in_order=True)
        if self.layer is not None:
            _naturals(self.kind, "layer", (self.layer,), in_order=True)
        if not _finite(self.coefficient):
            raise RequestError(f"{self.kind}: coefficient is {self.coefficient!r:.40}; allowed: a finite number")
        if self.factors is not None and not all(_finite(f) for f in self.factors):
            raise RequestError(f"{self.kind}: factors are {self.factors!r:.60}; allowed: finite numbers")
        if self.factors is not None and len(self.factors) != len(self.experts or ()):
            raise RequestError(f"{self.kind} has {len(self.factors)} factors for {len(self.experts or ())} experts")
        if self.kind == "knock_out" and sum(x is not None for x in (self.heads, self.neurons, self.experts)) != 1:
            raise RequestError("knock_out wants exactly one of heads, neurons and experts")

    @property
    def target(self) -> str:
        """The full name of the tap that it changes."""
        if self.tap is not None:
            return self.tap
        block = f"blocks.{self.layer}."
        if self.kind == "freeze_attention":
            return block + "attn.hook_pattern"
        if self.kind == "force_experts":
            return block + "mlp.hook_expert_indices"
        if self.kind == "weigh_experts":
            return block + "mlp.hook_expert_weights_topk"
        if self.kind == "bias_experts" or self.experts is not None:
            return block + "mlp.hook_router_logits"
        return block + ("attn.hook_z" if self.heads is not None else "mlp.hook_post")

    def check(self, spec: ModelSpec) -> None:
        """RequestError if the model has no such tap, head, neuron or expert, or the values have another shape."""
        name = self.target
        if name not in {tap.name for tap in taps(spec)} | {f"blocks.{i}.{RESULT}" for i in range(spec.n_layers)}:
            raise RequestError(f"{self.kind}: this model has no {name}; `vitral.model.taps` lists what it has")
        shape = row_shape(spec, name)
        if name.endswith("hook_expert_indices") and self.kind != "force_experts":
            raise RequestError(f"{name} holds whole numbers; use force_experts, bias_experts or knock_out")
        if self.heads is not None:
            if len(shape) != 2:
                raise RequestError(f"{self.kind}: {name} has no heads; leave heads out")
            _below(self.kind, "heads", self.heads, shape[0])
        if not is_attention(name):
            _below(self.kind, "columns", self.columns or (), shape[-1])
            _below(self.kind, "neurons", self.neurons or (), shape[-1])
        if self.experts is not None:
            self._check_experts(spec)
        if self.values is not None:
            self._check_values(name, shape)

    def apply(self, positions: NDArray[np.int64], value: Array, chosen: Array | None = None) -> None:
        """Change the rows of a value in place.

        value: (n, ...) as `row_shape` says, of a pattern or scores (H, n, S); positions: (n,). `chosen`
        are the experts of the rows (n, k), which weigh_experts reads.
        """
        rows = np.flatnonzero(self._mine(positions))
        if not len(rows):
            return
        attention = is_attention(self.target)
        view = value.swapaxes(0, 1) if attention else value
        axes: list[Any] = [rows]
        if view.ndim == 3:
            axes.append(np.arange(view.shape[1]) if self.heads is None else np.array(self.heads))
        axes.append(self._columns(view.shape[-1]))
        place = np.ix_(*axes)
        old = view[place]
        new = self._changed(old, positions[rows], None if chosen is None else chosen[rows], axes[-1])
        if attention:  # what lies ahead of a token stays out of its sight
            ahead = axes[-1][None, None, :] > positions[rows][:, None, None]
            new = np.where(ahead, old, new)
        view[place] = new

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: the fields that were given."""
        found: dict[str, Any] = {"kind": self.kind}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "kind" and value != f.default:
                found[f.name] = (
                    value.to_json() if isinstance(value, Values) else list(value) if isinstance(value, tuple) else value
                )
        return found

    @classmethod
    def from_json(cls, document: object, folder: Path | None = None) -> Self:
        """From a JSON object; RequestError names what is wrong. Files of values are looked for in `folder`."""
        if not isinstance(document, Mapping):
            raise RequestError(f"an intervention is {document!r:.40}; allowed: an object with a kind")
        known = {f.name for f in fields(cls)}
        for key in document:
            if key not in known:
                raise RequestError(f"an intervention has no {key!r:.40}; allowed: {', '.join(sorted(known))}")
        given = dict(document)
        if not isinstance(given.get("kind"), str):
            raise RequestError(f"an intervention wants a kind; allowed: {', '.join(_FIELDS)}")
        for name in (*_LISTS, "factors"):
            if name in given:
                if not isinstance(given[name], list):
                    raise RequestError(f"{given['kind']}: {name} is {given[name]!r:.40}; allowed: a list")
                given[name] = tuple(given[name])
        if "tap" in given and not isinstance(given["tap"], str):
            raise RequestError(f"{given['kind']}: tap is {given['tap']!r:.40}; allowed: a name")
        if "values" in given:
            given["values"] = Values.from_json(given["values"], folder)
        return cls(**given)

    def _mine(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        mine = positions >= self.since
        return mine if self.positions is None else mine & np.isin(positions, self.positions)

    def _columns(self, n: int) -> NDArray[np.int64]:
        for some in (self.columns, self.neurons):
            if some is not None:
                return np.array([c for c in some if c < n], np.int64)  # of a pattern: keys that exist by now
        if self.experts is not None and self.target.endswith("hook_router_logits"):
            return np.array(self.experts, np.int64)
        return np.arange(n)

    def _changed(self, old: Array, positions: NDArray[np.int64], chosen: Array | None, columns: Array) -> Array:
        if self.kind == "zero" or (self.kind == "knock_out" and self.experts is None):
            return np.zeros_like(old)
        if self.kind == "knock_out":
            return np.full_like(old, -np.inf)
        if self.kind == "force_experts":
            return np.broadcast_to(np.array(self.experts, old.dtype), old.shape)
        if self.kind == "bias_experts":
            return np.asarray(old + np.array(self.factors, np.float32))
        if self.kind == "weigh_experts":
            assert chosen is not None, "the chosen experts are always shown to weigh_experts"
            factors = np.ones(old.shape, np.float32)
            for expert, factor in zip(self.experts or (), self.factors or (), strict=True):
                factors[chosen == expert] = factor
            return np.asarray(old * factors)
        values = self._rows_of(positions, old.shape, columns)
        if self.kind == "steer":
            return np.asarray(old + np.float32(self.coefficient) * values)
        return np.broadcast_to(values, old.shape).astype(old.dtype)

    def _rows_of(self, positions: NDArray[np.int64], shape: tuple[int, ...], columns: Array) -> Array:
        """The values for these positions, as they fit rows of `shape`; a short pattern ends in zeros."""
        assert self.values is not None
        values = self.values.array()
        if self._by_position(len(shape)):
            assert self.positions is not None
            values = values[np.searchsorted(self.positions, positions)]
        if is_attention(self.target) and values.ndim and self.columns is None:
            width = shape[-1] - values.shape[-1]
            if width > 0:
                values = np.concatenate([values, np.zeros((*values.shape[:-1], width), np.float32)], axis=-1)
            values = values[..., : shape[-1]]
        elif is_attention(self.target) and values.ndim:
            values = values[..., : len(columns)]
        return np.asarray(values)

    def _by_position(self, axes: int) -> bool:
        assert self.values is not None
        return self.positions is not None and len(self.values.shape) == axes

    def _check_experts(self, spec: ModelSpec) -> None:
        assert spec.moe is not None, "a tap of the router exists only where there are experts"
        experts = self.experts or ()
        _below(self.kind, "experts", experts, spec.moe.n_experts)
        if len(set(experts)) != len(experts):
            raise RequestError(f"{self.kind} names an expert twice: {list(experts)}")
        k = spec.moe.n_experts_per_token
        if self.kind == "force_experts" and len(experts) != k:
            raise RequestError(f"force_experts names {len(experts)} experts; this model uses {k} for each token")
        if self.kind == "knock_out" and spec.moe.n_experts - len(experts) < k:
            raise RequestError(f"knock_out leaves {spec.moe.n_experts - len(experts)} experts; a token needs {k}")

    def _check_values(self, name: str, shape: tuple[int, ...]) -> None:
        assert self.values is not None
        row = list(shape)
        if self.heads is not None:
            row[0] = len(self.heads)
        if self.columns is not None:
            row[-1] = len(self.columns)
        found, free = list(self.values.shape), is_attention(name) and self.columns is None
        by_position = self._by_position(len(row) + 1)
        wanted = [len(self.positions or ()), *row] if by_position else row
        if self.kind in ("resample", "patch", "freeze_attention") and not by_position:
            raise RequestError(
                f"{self.kind} of {name}: values have shape {found}; allowed: {[len(self.positions or ()), *row]}"
            )
        if self.kind == "mean" and by_position:
            raise RequestError(f"mean of {name}: values have shape {found}; one mean for all positions has {row}")
        if found and (found[:-1] != wanted[:-1] or (not free and found[-1] != wanted[-1])):
            each = f", or {[len(self.positions), *row]} with one row for each position" if self.positions else ""
            raise RequestError(f"{self.kind} of {name}: values have shape {found}; allowed: {row}{each}")


def check_interventions(interventions: Sequence[Intervention], spec: ModelSpec) -> None:
    """All against a model; RequestError for the first that does not fit."""
    for intervention in interventions:
        intervention.check(spec)


def to_document(interventions: Sequence[Intervention]) -> dict[str, Any]:
    """A list as one JSON document."""
    return {"version": VERSION, "interventions": [intervention.to_json() for intervention in interventions]}


def from_document(document: object, folder: Path | None = None) -> tuple[Intervention, ...]:
    """The list of a document; RequestError for another version or anything that is not as it must be."""
    if not isinstance(document, Mapping) or set(document) != {"version", "interventions"}:
        raise RequestError("an intervention document has the keys version and interventions, and no other")
    if document["version"] != VERSION or not isinstance(document["interventions"], list):
        raise RequestError(
            f"the document is of version {document['version']!r:.20}; allowed: {VERSION}, with a list of interventions"
        )
    return tuple(Intervention.from_json(entry, folder) for entry in document["interventions"])


def digest(interventions: Sequence[Intervention]) -> str:
    """SHA-256 of the document in canonical JSON (RFC 8785), in hexadecimal; the order counts.

    >>> digest([]) == digest([Intervention("zero", tap="hook_embed")])
    False
    """
    return hashlib.sha256(rfc8785.dumps(to_document(interventions))).hexdigest()


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(np.float32(value)))


def _naturals(kind: str, name: str, values: object, *, in_order: bool) -> None:
    if values is None:
        return
    whole = isinstance(values, tuple) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 31 for v in values
    )
    if not whole or not values:
        raise RequestError(f"{kind}: {name} is {values!r:.60}; allowed: whole numbers from 0, at least one")
    assert isinstance(values, tuple)
    if in_order and any(a >= b for a, b in pairwise(values)):
        raise RequestError(f"{kind}: {name} is {values!r:.60}; give each once, in ascending order")


def _below(kind: str, name: str, values: Sequence[int], n: int) -> None:
    for value in values:
        if value >= n:
            raise RequestError(f"{kind}: {name} has {value}; this model has 0 to {n - 1}")
