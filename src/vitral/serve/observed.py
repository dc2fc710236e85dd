"""What the worker keeps of a request that is looked at, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.language_model import LanguageModel
from vitral.lens.light import LIGHT_AXES, LightSet
from vitral.lens.readings import position_axis
from vitral.lens.results import Looking
from vitral.model.spec import ModelSpec
from vitral.serve.engines import Ask, Seen

__all__ = ["LIGHT", "MOST_BYTES", "MOST_BYTES_TOGETHER", "Observed"]

MOST_BYTES = 32 << 20
"""Of one sequence's readings."""
MOST_BYTES_TOGETHER = 256 << 20
"""Of all sequences that are being computed."""
LIGHT = "light/"


class Observed:
    """Collects a sequence's readings; `n_bytes` is what they may grow to.

    Raises RequestError for taps that the model has not, and for more than `MOST_BYTES`.
    """

    def __init__(self, model: LanguageModel, ask: Ask) -> None:
        spec, prompt = model.spec, len(ask.prompt)
        left = model.context_length - prompt
        n = prompt + (left if ask.params.max_tokens is None else min(left, ask.params.max_tokens))
        self._looking = Looking(spec, model.weights, ask.watch, ask.interventions)
        self.n_bytes = self._looking.most_bytes(n)
        if ask.light is not None:
            self.n_bytes += max(0, n - ask.light) * _light_bytes(spec)
        if self.n_bytes > MOST_BYTES:
            raise RequestError(
                f"the readings of {n} tokens may take {self.n_bytes >> 20} MiB; allowed: {MOST_BYTES >> 20} MiB; ask for "
                "fewer taps, positions or layers, for the largest few (top), or set max_tokens"
            )
        self._ids = list(ask.prompt)
        self._light = None if ask.light is None else LightSet(model, ask.light)
        watches = [] if self._light is None else self._light.watches
        self.watches = [*self._looking.watches, *(replace(watch, label=LIGHT) for watch in watches)]

    def on_value(self, name: str, positions: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Keep rows; the engine calls it."""
        if self._light is not None and name.startswith(LIGHT):
            self._light.on_value(name.removeprefix(LIGHT), positions, rows)
        else:
            self._looking.on_value(name, positions, rows)

    def take(self, token: int) -> None:
        """The answer grew by a token."""
        self._ids.append(token)
        if self._light is not None:
            self._light.advance(self._ids)

    def result(self) -> Iterator[Seen]:
        """All readings, once the answer has ended."""
        for name, one in self._looking.found():
            yield Seen(name, position_axis(name), one.positions, one.values)
        light = None if self._light is None else self._light.finish(self._ids)
        if light is not None:
            for part, axis in LIGHT_AXES.items():
                values = getattr(light, part)
                if values is not None:
                    yield Seen(LIGHT + part, axis, light.positions, values)


def _light_bytes(spec: ModelSpec) -> int:
    """The light set of one token: lens, heads, eight keys with shares, and two numbers for each chosen expert."""
    routes = 0 if spec.moe is None else 1 + 2 * spec.moe.n_experts_per_token
    return 4 * spec.n_layers * (1 + 17 * spec.n_heads + routes) + 16
