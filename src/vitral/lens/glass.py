"""A model under the lens: every value by its name, and any of them replaced.

It runs the law itself (`vitral.model.reference`), so what it shows is to the bit what the engine
computes for quantised weights, and it takes a moment per token: for study, not for serving.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitral.errors import ContextOverflow, RequestError
from vitral.formats.weights import Weights
from vitral.lens.weights import WeightView
from vitral.model.law import F32
from vitral.model.reference import Cache, Reference
from vitral.model.spec import ModelSpec
from vitral.model.taps import taps
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Edit", "Glass", "Values", "open_glass"]

Values = Mapping[str, NDArray[np.generic]]
"""Values by their TransformerLens names, without a batch axis."""

Edit = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""What replaces a value: it gets the value and returns one of the same shape."""


class Glass:
    """A model that shows and takes every value of `vitral.model.taps`."""

    def __init__(self, spec: ModelSpec, weights: Weights, tokenizer: Tokenizer | None = None) -> None:
        self.spec = spec
        self.weights = WeightView(spec, weights)
        self.tokenizer = tokenizer
        self._reference = Reference(spec, weights.law())
        self._names = frozenset(tap.name for tap in taps(spec))

    def run(
        self, ids: Sequence[int], names: Collection[str] | None = None, edits: Mapping[str, Edit] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Values of T tokens by name: those that `names` gives (patterns such as `*.hook_pattern`), or all.

        `edits` replace values on the way, after which the rest is computed from the new ones; the value
        returned is the new one. Experts that no token reaches have no values. Raises RequestError for a
        name or an id that the model has not, ContextOverflow for more tokens than it was made for.
        """
        edits = edits or {}
        wrong = [i for i in ids if not 0 <= i < self.spec.vocab_size]
        if not len(ids) or wrong:
            raise RequestError(
                f"ids {wrong[:3]} of {len(ids)}; allowed: at least one, from 0 to {self.spec.vocab_size - 1}"
            )
        if len(ids) > self.spec.max_context:
            raise ContextOverflow(f"{len(ids)} tokens; the model takes {self.spec.max_context}; give a shorter prompt")
        for name in edits:
            if name not in self._names:
                raise RequestError(f"{name!r} is no value of this model; `vitral.model.taps` lists them")
        wanted = self._names if names is None else {n for n in self._names if any(fnmatchcase(n, p) for p in names)}
        if names is not None:
            idle = [p for p in names if not any(fnmatchcase(n, p) for n in self._names)]
            if idle:
                raise RequestError(f"{idle[0]!r} names no value of this model; `vitral.model.taps` lists them")
        seen: dict[str, NDArray[np.generic]] = {}

        def on_tap(name: str, value: NDArray[np.generic]) -> NDArray[np.generic] | None:
            edit = edits.get(name)
            changed = None if edit is None else np.asarray(edit(value.copy()), value.dtype)
            if changed is not None and changed.shape != value.shape:
                raise RequestError(f"{name} has shape {value.shape}; its replacement has {changed.shape}")
            if name in wanted:
                seen[name] = value if changed is None else changed
            return changed

        self._reference.forward(list(ids), Cache(self.spec, "f16"), on_tap)  # keys and values as the engine keeps them
        return seen

    def logits(self, ids: Sequence[int], edits: Mapping[str, Edit] | None = None) -> F32:
        """Logits (T, V) alone."""
        return self.run(ids, ["unembed.hook_out"], edits)["unembed.hook_out"].astype(np.float32)


def open_glass(path_or_name: str | Path) -> Glass:
    """Open a model by path, short name or `hf:owner/name`, past the same scan as `vitral.load`."""
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.hub import admitted
    from vitral.language_model import tokenizer_of

    checkpoint = open_checkpoint(admitted(str(path_or_name)))
    return Glass(checkpoint.spec, checkpoint.weights, tokenizer_of(checkpoint))
