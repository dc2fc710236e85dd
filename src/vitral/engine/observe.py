"""Which values a request shows and changes, and how a step's values find their requests.

A batch has rows of many requests. `StepTaps` cuts every value that the model shows into the rows of
each request, lets its interventions change them in place, and keeps what it watches; the rows of other
requests are not touched. `deliver` hands over what was kept once the step has succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.interventions import Intervention, check_interventions
from vitral.errors import RequestError
from vitral.formats.bounds import nearest
from vitral.model.spec import ModelSpec
from vitral.model.taps import RESULT, is_attention, row_shape, taps

if TYPE_CHECKING:
    from vitral.engine.scheduler import Chunk
    from vitral.model.reference import OnTap

__all__ = ["HeadResult", "OnValue", "StepTaps", "TapPlan", "Watch", "reference_taps", "replace_results"]

Array = NDArray[Any]
OnValue = Callable[[str, NDArray[np.int64], Array], None]
"""Sees a tap's name, the absolute positions of the rows (n,) and the rows (n, ...); of attention (H, n, S)."""

HeadResult = Callable[[int, Array, int], Array]
"""As `Reference.head_result`."""

_Z, _OUT = "attn.hook_z", "hook_attn_out"


@dataclass(frozen=True, slots=True)
class Watch:
    """What to show: taps by full names or patterns (`blocks.*.hook_resid_post`), and how much of them.

    positions: absolute ones; None for all, those of the answer too. since: only from this one on.
    heads, columns: entries of the head axis and of the last axis (of `unembed.hook_out`: token ids).
    top: only the largest of the last axis, largest first; their columns come as `NAME.indices` (int32).
    label: is put before the names, so that several watches of one tap can be told apart.

    >>> Watch(("blocks.*.attn.hook_pattern",), top=8).top
    8
    """

    names: tuple[str, ...]
    positions: tuple[int, ...] | None = None
    since: int = 0
    heads: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    top: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not self.names or not all(isinstance(name, str) for name in self.names):
            raise RequestError(
                f"a watch has the names {self.names!r:.60}; allowed: names or patterns of taps, at least one"
            )
        for what in ("positions", "heads", "columns"):
            some = getattr(self, what)
            if some is not None and not all(isinstance(n, int) and n >= 0 for n in some):
                raise RequestError(f"a watch has {what} {some!r:.60}; allowed: whole numbers from 0")
            if some is not None and what != "positions" and not some:
                raise RequestError(f"a watch has no {what}; name at least one, or leave {what} out")
        if self.top is not None and (isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1):
            raise RequestError(f"top is {self.top!r}; allowed: a whole number from 1, or none")

    def resolve(self, spec: ModelSpec) -> list[str]:
        """The full names in the model's order; RequestError for a name or pattern without a tap."""
        known = [tap.name for tap in taps(spec)]
        found: set[str] = set()
        for pattern in self.names:
            some = {pattern} if pattern in known else {name for name in known if fnmatchcase(name, pattern)}
            if not some:
                near = nearest(pattern, known)
                raise RequestError(f"no tap is called {pattern!r:.60}" + (f"; the nearest is {near}" if near else ""))
            found |= some
        for name in found if self.heads is not None or self.columns is not None else ():
            shape = row_shape(spec, name)
            if self.heads is not None and (len(shape) != 2 or max(self.heads, default=0) >= shape[0]):
                raise RequestError(f"{name} has no heads {list(self.heads)}; one token's shape is {list(shape)}")
            if self.columns is not None and not is_attention(name) and max(self.columns, default=0) >= shape[-1]:
                raise RequestError(f"{name} has no columns {list(self.columns)[:5]}; allowed: 0 to {shape[-1] - 1}")
        return [name for name in known if name in found]

    def most_bytes(self, spec: ModelSpec, n_tokens: int) -> int:
        """The bytes that it shows of a request of so many tokens, at the most."""
        rows = (
            n_tokens - self.since if self.positions is None else sum(self.since <= p < n_tokens for p in self.positions)
        )
        size = 0
        for name in self.resolve(spec):
            *heads, last = row_shape(spec, name)
            last = min(last, n_tokens) if is_attention(name) else last
            if self.heads is not None:
                heads = [len(self.heads)]
            if self.columns is not None:
                last = len(self.columns)
            size += math.prod(heads) * (last if self.top is None else 2 * min(self.top, last))
        return 4 * size * max(0, rows)

    def wants(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these positions are watched."""
        mine = positions >= self.since
        return mine if self.positions is None else mine & np.isin(positions, self.positions)

    def first_from(self, position: int) -> int | None:
        """The first watched position from this one on."""
        first = max(position, self.since)
        if self.positions is None:
            return first
        return min((p for p in self.positions if p >= first), default=None)

    def reduce(self, name: str, rows: Array) -> Iterable[tuple[str, Array]]:
        """Copies of what is asked of rows (n, ...) or (H, n, S)."""
        if self.heads is not None:
            rows = rows[list(self.heads)] if is_attention(name) else rows[:, list(self.heads)]
        if self.columns is not None:
            rows = rows[..., [c for c in self.columns if c < rows.shape[-1]]]
        name = self.label + name
        if self.top is None:
            yield name, np.array(rows)
            return
        from vitral.native import top_rows  # the rest of the engine needs no C++

        flat = rows.reshape(-1, rows.shape[-1])
        indices = top_rows(flat, self.top)
        shape = (*rows.shape[:-1], indices.shape[-1])
        yield name, flat[np.arange(len(flat))[:, None], indices].reshape(shape)
        names = indices if self.columns is None else np.array(self.columns, np.int32)[indices]
        yield name + ".indices", names.reshape(shape)


@dataclass(frozen=True, slots=True)
class TapPlan:
    """A request's watches and interventions by the full names of their taps, checked against the model."""

    watched: dict[str, list[Watch]]
    changed: dict[str, list[Intervention]]
    on_value: OnValue | None = None

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        watches: Sequence[Watch],
        interventions: Sequence[Intervention],
        on_value: OnValue | None,
    ) -> TapPlan:
        """RequestError for what the model has not, and for values that nobody would see."""
        if (on_value is None) != (not watches):
            raise RequestError("a watch and on_value go together; give both or neither")
        check_interventions(interventions, spec)
        watched: dict[str, list[Watch]] = {}
        for watch in watches:
            for name in watch.resolve(spec):
                watched.setdefault(name, []).append(watch)
        changed: dict[str, list[Intervention]] = {}
        for intervention in interventions:
            changed.setdefault(intervention.target, []).append(intervention)
        return cls(watched, changed, on_value)

    @property
    def names(self) -> set[str]:
        """The taps that the model has to show."""
        names = self.watched.keys() | self.changed.keys()
        for name in [name for name in names if name.endswith(RESULT)]:  # made of z, it changes what attention adds
            names = names - {name} | {name.replace(RESULT, _Z), name.replace(RESULT, _OUT)}
        return names | {_indices_of(name) for name in names if _needs_indices(name)}

    def concerns(self, name: str) -> bool:
        """Whether a tap is watched, changed, or needed to replace results of heads."""
        if name in self.watched or name in self.changed:
            return True
        return bool(self.changed) and (self.makes_results(name) or bool(self.results_before(name)))

    @property
    def replaces_results(self) -> bool:
        """Whether results of heads are changed."""
        return any(name.endswith(RESULT) for name in self.changed)

    def makes_results(self, name: str) -> bool:
        """Whether a tap is the z that results to be replaced are made of."""
        return name.endswith(_Z) and name.replace(_Z, RESULT) in self.changed

    def results_before(self, name: str) -> Sequence[Intervention]:
        """What changes the results that a tap is the sum of."""
        return self.changed.get(name.replace(_OUT, RESULT), ()) if name.endswith(_OUT) else ()

    @property
    def watches_every_logit(self) -> bool:
        """Whether a tap behind the last block is watched: it exists for positions whose logits are computed."""
        return any(_is_final(name) for name in self.watched)

    def first_watched(self, position: int) -> int | None:
        """The first position from this one on that somebody watches."""
        firsts = [w.first_from(position) for some in self.watched.values() for w in some]
        return min((first for first in firsts if first is not None), default=None)


@dataclass(slots=True)
class StepTaps:
    """The taps of one step. `names` is what the model shows, `on_tap` what it calls."""

    chunks: Sequence[Chunk]
    head_result: HeadResult
    kept: list[list[tuple[str, NDArray[np.int64], Array]]] = field(init=False)
    names: set[str] = field(init=False)
    attention_of: set[int] = field(init=False)  # chunks whose scores or patterns somebody wants
    changes: bool = field(init=False, default=False)  # whether a chunk's interventions write to values
    _chosen: Array | None = None  # experts of the layer (T, k)
    _z: dict[int, Array] = field(default_factory=dict)  # of chunks that replace results of the layer

    def __post_init__(self) -> None:
        self.kept = [[] for _ in self.chunks]
        self.names = set()
        self.attention_of = set()
        for number, chunk in enumerate(self.chunks):
            plan = chunk.request.tap_plan
            if plan is not None:
                self.names |= plan.names
                self.changes |= bool(plan.changed)
                if any(is_attention(name) for name in plan.names):
                    self.attention_of.add(number)

    def on_tap(self, name: str, value: Array, sequence: int) -> None:
        """Change and keep rows of a value of the whole batch, or of one chunk's attention."""
        if name.endswith("hook_expert_indices"):
            self._chosen = value
        first = 0
        for number, chunk in enumerate(self.chunks):
            n = len(chunk.wanted) if _is_final(name) else chunk.count
            rows = slice(first, first + n)
            first += n
            plan = chunk.request.tap_plan
            if plan is None or not plan.concerns(name):
                continue
            if is_attention(name):
                if sequence == number:
                    self._row(number, name, np.arange(chunk.start, chunk.end), value)
            elif ".experts." in name:
                self._expert(number, name, value, rows)
            else:
                positions = np.array(chunk.wanted) if _is_final(name) else np.arange(chunk.start, chunk.end)
                chosen = (
                    self._chosen[rows]
                    if name.endswith("hook_expert_weights_topk") and self._chosen is not None
                    else None
                )
                self._row(number, name, positions, value[rows], chosen)

    def deliver(self, number: int) -> None:
        """Hand what was kept of a chunk to its request. What the receiver raises ends that request alone."""
        plan = self.chunks[number].request.tap_plan
        if plan is not None and plan.on_value is not None:
            for name, positions, rows in self.kept[number]:
                plan.on_value(name, positions, rows)

    def _expert(self, number: int, name: str, value: Array, rows: slice) -> None:
        """An expert's rows are those of the tokens that chose it, in their order."""
        assert self._chosen is not None, "expert taps bring the chosen experts along"
        expert = int(name.split(".experts.")[1].split(".")[0])
        tokens = np.nonzero(self._chosen == expert)[0]
        mine = np.flatnonzero((tokens >= rows.start) & (tokens < rows.stop))
        if len(mine):  # a request's tokens are consecutive, so are its rows
            start = self.chunks[number].start - rows.start
            self._row(number, name, (tokens[mine] + start).astype(np.int64), value[mine[0] : mine[-1] + 1])

    def _row(
        self, number: int, name: str, positions: NDArray[np.int64], value: Array, chosen: Array | None = None
    ) -> None:
        request = self.chunks[number].request
        plan = request.tap_plan
        assert plan is not None
        if plan.changed:
            if results := plan.results_before(name):
                replace_results(results, positions, self._z[number], value, self.head_result)
            for intervention in plan.changed.get(name, ()):
                intervention.apply(positions, value, chosen)
            if plan.makes_results(name):
                self._z[number] = np.array(value)
        for watch in plan.watched.get(name, ()):
            first = positions[0]
            if watch.positions is None and watch.since <= first and request.observed <= first:
                self.kept[number] += [(label, positions, rows) for label, rows in watch.reduce(name, value)]
                continue  # the case of every decoded token, worth its own way: no mask
            mine = watch.wants(positions) & (positions >= request.observed)
            if mine.any():
                some = value if mine.all() else value[:, mine] if is_attention(name) else value[mine]
                self.kept[number] += [(label, positions[mine], rows) for label, rows in watch.reduce(name, some)]


def replace_results(
    changes: Collection[Intervention],
    positions: NDArray[np.int64],
    z: Array,
    out: Array,
    head_result: HeadResult,
) -> None:
    """Change results of heads: `out` (n, C), what attention adds, gets each new one less the old, head after head.

    A head whose result stays adds nothing, so the bits of the others stay too. z (n, H, D) at `positions` (n,).
    """
    layer = int(next(iter(changes)).target.split(".")[1])
    n, H, _ = z.shape
    everyone = any(change.heads is None for change in changes)
    heads = range(H) if everyone else sorted({head for change in changes for head in change.heads or ()})
    old = np.zeros((n, H, out.shape[-1]), np.float32)
    for head in heads:
        old[:, head] = head_result(layer, z, head)
    new = old.copy()
    for change in changes:
        change.apply(positions, new)
    for head in heads:
        out += new[:, head] - old[:, head]


def reference_taps(
    interventions: Collection[Intervention],
    start: int = 0,
    see: Callable[[str, Array], None] | None = None,
    head_result: HeadResult | None = None,
) -> OnTap:
    """The same interventions for `Reference.forward`, whose first token is at position `start`; `see` sees the values.

    head_result: the reference's own, needed to replace results of heads.

    >>> reference_taps([Intervention("zero", tap="hook_embed")])("hook_embed", np.ones((1, 2), np.float32)).tolist()
    [[0.0, 0.0]]
    """
    chosen: list[Array] = []
    z: list[Array] = []
    results: dict[str, list[Intervention]] = {}
    for one in interventions:
        if one.target.endswith(RESULT):
            results.setdefault(one.target.replace(RESULT, _OUT), []).append(one)
    if results and head_result is None:
        raise RequestError("results of heads are replaced with the reference's head_result; give it")

    def on_tap(name: str, value: Array) -> Array:
        n = value.shape[1] if is_attention(name) else len(value)
        positions = np.arange(start, start + n)
        if ".experts." in name:
            expert = int(name.split(".experts.")[1].split(".")[0])
            positions = start + np.nonzero(chosen[-1] == expert)[0]
        changed = value.copy()
        if name in results:
            assert head_result is not None, "it was looked for above"
            replace_results(results[name], positions, z[-1], changed, head_result)
        for intervention in interventions:
            if intervention.target == name:
                rows = chosen[-1] if name.endswith("hook_expert_weights_topk") else None
                intervention.apply(positions, changed, rows)
        if name.endswith("hook_expert_indices"):
            chosen.append(changed)
        if name.endswith(_Z):
            z.append(changed)
        if see is not None:
            see(name, changed)
        return changed

    return on_tap


def _is_final(name: str) -> bool:
    return name.startswith(("ln_final.", "unembed."))


def _needs_indices(name: str) -> bool:
    return ".experts." in name or name.endswith("hook_expert_weights_topk")


def _indices_of(name: str) -> str:
    return name[: name.index(".mlp.")] + ".mlp.hook_expert_indices"
