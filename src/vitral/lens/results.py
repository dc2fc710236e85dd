"""`attn.hook_result`, what each head adds to the residual stream: made of `hook_z` and W_O for who asks for it.

It is H times as large as the residual stream and no pass needs it, so the model has no such tap. Only a name that ends
in `hook_result` asks for it, `*` does not. Like every value it is seen after the interventions that change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.errors import RequestError
from vitral.formats.weights import Weights
from vitral.lens.readings import Reading, Readings
from vitral.lens.weights import WeightView
from vitral.model.spec import ModelSpec
from vitral.model.taps import RESULT

__all__ = ["RESULT", "Looking", "result_names"]

_Z = "attn.hook_z"


def result_names(spec: ModelSpec, pattern: str) -> list[str]:
    """The full names that a pattern asks for, in the order of the blocks; none if it does not end in `hook_result`."""
    if not pattern.endswith("hook_result"):
        return []
    names = [f"blocks.{i}.{RESULT}" for i in range(spec.n_layers)]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise RequestError(
            f"no tap is called {pattern!r:.60}; allowed: blocks.N.{RESULT}, N from 0 to {len(names) - 1}"
        )
    return found


class Looking:
    """A request's watches, those of `hook_result` among them: give `watches` and `on_value` to the engine.

    RequestError for a result that the model has not. `weights` are needed for results alone.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights | None,
        watches: Sequence[Watch],
        interventions: Sequence[Intervention] = (),
    ) -> None:
        self._spec = spec
        self._changes = [change for change in interventions if change.target.endswith(RESULT)]
        self._view = None if weights is None else WeightView(spec, weights)
        self._readings = Readings()
        self._results: dict[str, Watch] = {}  # by the label that the values of z come with
        self.watches: list[Watch] = []
        for number, watch in enumerate(watches):
            results = [name for pattern in watch.names for name in result_names(spec, pattern)]
            others = tuple(name for name in watch.names if not name.endswith("hook_result"))
            if others:
                self.watches.append(replace(watch, names=others))
            if results:
                if weights is None:
                    raise RequestError(
                        "hook_result is made of W_O, and this model was made without its weights at hand"
                    )
                self._check(watch)
                label = f"result of {number}/"
                self._results[label] = watch
                z = tuple(name.replace(RESULT, _Z) for name in results)
                self.watches.append(replace(watch, names=z, heads=None, columns=None, top=None, label=label))
        self.on_value = self._readings.on_value

    def most_bytes(self, n_tokens: int) -> int:
        """What all readings of a request of so many tokens can take."""
        n_bytes = sum(watch.most_bytes(self._spec, n_tokens) for watch in self.watches)
        for watch, asked in ((watch, self._results.get(watch.label)) for watch in self.watches):
            if asked is not None:  # as much as z, made wider
                n_bytes += watch.most_bytes(self._spec, n_tokens) * -(-self._spec.dim // self._spec.head_dim)
        return n_bytes

    def found(self) -> Iterator[tuple[str, Reading]]:
        """All readings by label and name, in the order in which they came."""
        for name, reading in self._readings.items():
            label = next((label for label in self._results if name.startswith(label)), None)
            if label is None:
                yield name, reading
                continue
            tap = name.removeprefix(label)
            assert self._view is not None, "it was looked for when the result was asked for"
            every = self._view.head_results(int(tap.split(".")[1]), reading.values)  # (n, H, C)
            for change in self._changes:
                if change.target == tap.replace(_Z, RESULT):
                    change.apply(reading.positions, every)
            for result, rows in self._results[label].reduce(tap.replace(_Z, RESULT), every):
                yield result, Reading(reading.positions, rows)

    def _check(self, watch: Watch) -> None:
        for what, some, n in (("heads", watch.heads, self._spec.n_heads), ("columns", watch.columns, self._spec.dim)):
            if some is not None and max(some) >= n:
                raise RequestError(f"hook_result has no {what} {list(some)[:5]}; allowed: 0 to {n - 1}")
