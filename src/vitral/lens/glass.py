"""A model under the lens: every value by its name, and any of them replaced.

It runs the engine's own model with its taps, so what it shows is to the bit what answers are made of, at the engine's
speed. A prompt is one pass: an edit is given a value of all its tokens at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.forward import Batch
from vitral.engine.memory import PAGE_SIZE
from vitral.engine.native import NativeForward, native_model
from vitral.errors import ContextOverflow, RequestError
from vitral.formats.weights import Weights
from vitral.lens.results import result_names
from vitral.lens.weights import WeightView
from vitral.model.law import F32, KV_DEFAULT
from vitral.model.spec import ModelSpec
from vitral.model.taps import RESULT, is_attention, taps
from vitral.native import choose
from vitral.settings import read_settings
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Edit", "Glass", "Values", "open_glass"]

Values = Mapping[str, NDArray[np.generic]]
"""Values by their TransformerLens names, without a batch axis."""

Edit = Callable[[NDArray[np.generic]], NDArray[np.generic]]
"""What replaces a value: it gets the value and returns one of the same shape."""

_ROOM = 512  # tokens that the cache holds at first; a longer prompt makes it larger


class Glass:
    """A model that shows and takes every value of `vitral.model.taps`.

    threads: how many compute; VITRAL_THREADS, or all that this process may use. It never changes a bit.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, tokenizer: Tokenizer | None = None, threads: int | None = None
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        settings = read_settings()
        self._threads = threads or settings.threads or len(os.sched_getaffinity(0))
        self.weights = WeightView(spec, weights, self._threads)
        self._isa = choose(settings.isa)
        self._names = frozenset(tap.name for tap in taps(spec))
        self._forward: NativeForward | None = None

    def run(
        self, ids: Sequence[int], names: Collection[str] | None = None, edits: Mapping[str, Edit] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Values of T tokens by name: those that `names` gives (patterns such as `*.hook_pattern`), or all.

        `edits` replace values on the way, after which the rest is computed from the new ones; the value
        returned is the new one. `attn.hook_result` (T, H, C) is made of z when a name asks for it; replaced, `hook_attn_out`
        gets of each head the new one less the old, so heads that stay add nothing. Experts that no token reaches have no values. Raises RequestError for a
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
        made = {name for name in edits if name.endswith(RESULT) and name in result_names(self.spec, name)}
        for name in edits:
            if name not in self._names and name not in made:
                raise RequestError(f"{name!r} is no value of this model; `vitral.model.taps` lists them")
        results = [name for pattern in names or () for name in result_names(self.spec, pattern)]
        kept = self._names if names is None else {n for n in self._names if any(fnmatchcase(n, p) for p in names)}
        wanted = kept | {name.replace("hook_result", "hook_z") for name in {*results, *made}}
        if names is not None:
            idle = [
                p for p in names if not p.endswith("hook_result") and not any(fnmatchcase(n, p) for n in self._names)
            ]
            if idle:
                raise RequestError(f"{idle[0]!r} names no value of this model; `vitral.model.taps` lists them")
        seen: dict[str, NDArray[np.generic]] = {}
        replaced: dict[str, NDArray[np.generic]] = {}

        def edited(name: str, value: NDArray[Any]) -> NDArray[Any]:
            changed = np.asarray(edits[name](value.copy()), value.dtype)
            if changed.shape != value.shape:
                raise RequestError(f"{name} has shape {value.shape}; its replacement has {changed.shape}")
            return changed

        def on_tap(name: str, value: NDArray[Any], sequence: int) -> None:
            if (result := name.replace("hook_attn_out", RESULT)) in made and result != name:
                z = np.asarray(seen[result.replace("hook_result", "hook_z")], np.float32)
                old = self.weights.head_results(int(name.split(".")[1]), z)
                replaced[result] = new = edited(result, old)
                for head in range(self.spec.n_heads):
                    value += new[:, head] - old[:, head]
            if name in edits:
                value[...] = edited(name, value)
            if name in wanted:
                seen[name] = value.copy()

        shown = wanted | (edits.keys() - made) | {name.replace(RESULT, "hook_attn_out") for name in made}
        of = [0] if any(is_attention(name) for name in shown) else []
        self._model(len(ids)).with_taps(_batch(ids), shown, on_tap, of)
        found = {name: value for name, value in seen.items() if name in kept}
        for name in results:
            if name in replaced:
                found[name] = replaced[name]
                continue
            z = np.asarray(seen[name.replace("hook_result", "hook_z")], np.float32)
            found[name] = self.weights.head_results(int(name.split(".")[1]), z)
        return found

    def logits(self, ids: Sequence[int], edits: Mapping[str, Edit] | None = None) -> F32:
        """Logits (T, V) alone."""
        return self.run(ids, ["unembed.hook_out"], edits)["unembed.hook_out"].astype(np.float32)

    def _model(self, n_tokens: int) -> NativeForward:
        """The native model, packed when it is first run, with room for so many tokens."""
        spec = self.spec
        if self._forward is not None and n_tokens <= self._forward.n_pages * PAGE_SIZE:
            return self._forward
        pages = -(-max(n_tokens, min(_ROOM, spec.max_context)) // PAGE_SIZE)
        if self._forward is None:
            tensors = Weights(spec, dict(self.weights.tensors.tensors))  # packing counts what it takes
            model = native_model(spec, tensors, threads=self._threads, isa=self._isa, context_length=spec.max_context)
        else:
            model = self._forward.model
        self._forward = NativeForward(model, model.new_cache(pages, PAGE_SIZE, KV_DEFAULT), spec.vocab_size)
        return self._forward


def open_glass(path_or_name: str | Path, threads: int | None = None) -> Glass:
    """Open a model by path, short name or `hf:owner/name`, past the same scan as `vitral.load`."""
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.hub import admitted
    from vitral.loading import tokenizer_of

    checkpoint = open_checkpoint(admitted(str(path_or_name)))
    return Glass(checkpoint.spec, checkpoint.weights, tokenizer_of(checkpoint), threads)


def _batch(ids: Sequence[int]) -> Batch:
    """One sequence, all of whose logits are wanted, from the first page on."""
    T = len(ids)
    every = np.arange(T, dtype=np.int32)
    pages = np.arange(-(-T // PAGE_SIZE), dtype=np.int32)[None]
    return Batch(np.array(ids, np.int32), every, np.zeros(T, np.int32), pages, every)
