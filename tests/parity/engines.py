"""The native model as the parity tests use it: one sequence or several, in any cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.native import NativeModel

PAGE = 16


def native_model(
    spec: ModelSpec, raw: Mapping[str, tuple[str, NDArray[np.uint8]]], isa: str, threads: int = 1, context: int = 64
) -> NativeModel:
    model = NativeModel(spec, threads, isa)
    for name, (type_, rows) in raw.items():
        model.set_weight(name, type_, rows)
    model.finish()
    model.set_context(context)
    return model


def float_rows(weights: Mapping[str, F32]) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    return {name: ("F32", np.ascontiguousarray(np.atleast_2d(value)).view(np.uint8)) for name, value in weights.items()}


def run(
    model: NativeModel,
    sequences: Sequence[Sequence[int]],
    cuts: Sequence[int],
    kv_type: str = "f32",
    page_size: int = PAGE,
) -> list[F32]:
    """Logits of every token of each sequence, `cuts` tokens of each at a step, all sequences together."""
    pages = -(-max(map(len, sequences)) // page_size)
    cache = model.new_cache(pages * len(sequences), page_size, kv_type)
    # pages of a sequence are apart and in no order
    table = np.arange(pages * len(sequences), dtype=np.int32).reshape(pages, -1).T[:, ::-1].copy()
    done = [0] * len(sequences)
    found: list[list[F32]] = [[] for _ in sequences]
    step = 0
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        ids, positions, rows = [], [], []
        for b, sequence in enumerate(sequences):
            n = min(cuts[(step + b) % len(cuts)], len(sequence) - done[b])
            ids += sequence[done[b] : done[b] + n]
            positions += range(done[b], done[b] + n)
            rows += [b] * n
            done[b] += n
        step += 1
        arrays = [np.array(x, np.int32) for x in (ids, positions, rows)]
        logits = model.forward(cache, *arrays, table, np.arange(len(ids), dtype=np.int32))
        for b in range(len(sequences)):
            found[b].append(logits[arrays[2] == b])
    return [np.concatenate(parts) for parts in found]
