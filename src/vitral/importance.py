"""Measure which columns of a model's matrices matter, by running it on a text (`vitral quantize --importance`).

Every matrix reads a value that has a tap. Squares of those values are summed by column over the text;
`formats.imatrix` keeps the sums, the encoders of `formats.quantize` weigh errors by them. Windows and
their first token are those of llama.cpp's `llama-imatrix`: whole windows only, each begun anew, its
first token replaced by the beginning-of-text token where the tokenizer has one to add.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitral.errors import NumericalError, RequestError
from vitral.formats.imatrix import Imatrix, Sums
from vitral.model.law import KV_DEFAULT
from vitral.model.spec import ModelSpec
from vitral.native import Cache, NativeModel
from vitral.settings import read_settings

__all__ = ["measure"]

Values = NDArray[np.generic]


def measure(
    path: Path,
    text: str,
    *,
    window: int = 512,
    most_windows: int | None = None,
    dataset: str = "",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Imatrix:
    """Run the model at `path` over a text and sum the squares of what each matrix reads.

    `window` is the tokens of a window, `dataset` what the text is called in the file. The unembedding
    and the embedding are left out, as `llama-imatrix` leaves them. Raises RequestError for a text
    shorter than a window, NumericalError where the model computes something that is not a number.
    """
    from vitral import native
    from vitral.engine.memory import PAGE_SIZE
    from vitral.engine.native import native_model
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.loading import tokenizer_of

    settings = read_settings()
    checkpoint = open_checkpoint(path)
    tokenizer = tokenizer_of(checkpoint)
    spec = checkpoint.spec
    if not 16 <= window <= spec.max_context:
        raise RequestError(f"the window is {window} tokens; allowed: 16 to the model's context, {spec.max_context}")
    ids = tokenizer.encode(text)
    n_windows = min(len(ids) // window, most_windows or len(ids))
    if not n_windows:
        raise RequestError(f"the text has {len(ids)} tokens; at least one window of {window} is needed")
    threads = threads or settings.threads or len(os.sched_getaffinity(0))
    isa = native.choose(settings.isa)
    model = native_model(spec, checkpoint.weights, threads=threads, isa=isa, context_length=window)
    n_pages = -(-window // PAGE_SIZE)
    cache = model.new_cache(n_pages, PAGE_SIZE, KV_DEFAULT)
    squares = _Squares(spec)
    for i in range(n_windows):
        piece = ids[i * window : (i + 1) * window]
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            piece[0] = tokenizer.bos_id
        _run(model, cache, piece, n_pages, squares)
        if progress is not None:
            progress(i + 1, n_windows)
    return Imatrix(squares.sums, [dataset] if dataset else [], window, n_windows)


def _run(model: NativeModel, cache: Cache, ids: Sequence[int], n_pages: int, squares: _Squares) -> None:
    """One window from an empty cache."""
    n = len(ids)
    model.forward(
        cache,
        np.array(ids, np.int32),
        np.arange(n, dtype=np.int32),
        np.zeros(n, np.int32),
        np.arange(n_pages, dtype=np.int32)[None],
        np.array([n - 1], np.int32),
        squares.taps,
        squares.take,
    )


class _Squares:
    """Adds up squares as the taps show values; `sums` has every matrix but embedding and unembedding."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.sums: dict[str, Sums] = {}
        self.readers: dict[str, list[str]] = {}  # tap -> the matrices that read its value as it is
        for i in range(spec.n_layers):
            block = f"blocks.{i}."
            self._reads(f"{block}attn.hook_in", spec.dim, [f"{block}attn.{x}.weight" for x in "qkv"])
            self._reads(f"{block}attn.hook_z", spec.n_heads * spec.head_dim, [f"{block}attn.o.weight"])
            moe = spec.moe_of(i)
            if moe is None:
                self._reads(f"{block}mlp.hook_in", spec.dim, [f"{block}mlp.{x}.weight" for x in ("gate", "up")])
                self._reads(f"{block}mlp.hook_post", spec.hidden_dim, [f"{block}mlp.down.weight"])
                continue
            for e in range(moe.n_experts):
                expert = f"{block}mlp.experts.{e}."
                for x in ("gate", "up"):  # they read the rows of hook_in that the router sends them
                    self.sums[f"{expert}{x}.weight"] = Sums(np.zeros(spec.dim), 0)
                self._reads(f"{expert}hook_post", spec.hidden_dim, [f"{expert}down.weight"])
        self.taps = list(self.readers)
        for i in spec.mixture_layers:
            self.taps += [f"blocks.{i}.mlp.hook_in", f"blocks.{i}.mlp.hook_expert_indices"]
        self.waiting: Values = np.zeros((0, 0))

    def _reads(self, tap: str, columns: int, matrices: list[str]) -> None:
        self.readers[tap] = matrices
        for name in matrices:
            self.sums[name] = Sums(np.zeros(columns), 0)

    def take(self, name: str, values: Values, sequence: int) -> None:
        """A tap's value, (T, K) or (T, H, D)."""
        if name in self.readers:
            self._add(self.readers[name], values.reshape(len(values), -1))
        elif name.endswith("hook_in"):
            self.waiting = values.copy()
        else:
            prefix = name.removesuffix("hook_expert_indices")
            for e in range(self.spec.moe.n_experts if self.spec.moe else 0):
                rows = self.waiting[(values == e).any(axis=1)]
                self._add([f"{prefix}experts.{e}.{x}.weight" for x in ("gate", "up")], rows)

    def _add(self, matrices: list[str], rows: Values) -> None:
        wide = rows.astype(np.float64)
        squares = np.einsum("tk,tk->k", wide, wide)
        if not np.isfinite(squares).all():
            raise NumericalError(f"the input of {matrices[0]} is not a number on this text; the checkpoint is damaged")
        for name in matrices:
            sums = self.sums[name]
            sums.squares += squares
            sums.count += len(rows)
