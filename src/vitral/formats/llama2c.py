"""The `.bin` files of llama2.c: seven numbers, then float32 matrices in a fixed order.

Source: `export.py` (version 0) and `run.c` of karpathy/llama2.c. The header is dim, hidden_dim,
n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len; a negative vocab_size says that the
unembedding follows at the end. There is no magic number: a file is one if, and only if, its size is
exactly what its header implies.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path

from vitral.errors import FormatError, SpecError
from vitral.formats.bounds import map_file
from vitral.formats.canonical import Checkpoint, canonical
from vitral.formats.dialect_params import spec_from_llama2c
from vitral.formats.mapping import canonical_from_meta
from vitral.formats.quants import TYPES
from vitral.formats.weights import U8, Tensor
from vitral.model.spec import ModelSpec

__all__ = ["looks_like_llama2c", "open_llama2c"]

_HEADER = struct.Struct("<7i")


def looks_like_llama2c(head: bytes, n_bytes: int) -> bool:
    """Whether the first 28 bytes describe a model of exactly this size.

    >>> looks_like_llama2c(struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512), 1_056_540)
    True
    """
    if len(head) < _HEADER.size:
        return False
    try:
        spec = spec_from_llama2c(_HEADER.unpack_from(head))
    except SpecError:
        return False
    return _HEADER.size + 4 * sum(math.prod(shape) for _, shape in _order(spec)) == n_bytes


def open_llama2c(path: Path) -> Checkpoint:
    """Open a llama2.c model. Raises FormatError where header and size disagree."""
    mapped = map_file(path, _HEADER.size)
    header = _HEADER.unpack(mapped[: _HEADER.size].tobytes())
    spec = spec_from_llama2c(header)
    stored: dict[str, Tensor] = {}
    at = _HEADER.size
    for name, shape in _order(spec):
        size = 4 * math.prod(shape)
        if "*" in name:
            for i in range(spec.n_layers):
                each = size // spec.n_layers
                one = name.replace("*", str(i))
                stored[one] = Tensor(one, TYPES["F32"], shape[1:], partial(_bytes, mapped, at + i * each, each))
        elif name:
            stored[name] = Tensor(name, TYPES["F32"], shape, partial(_bytes, mapped, at, size))
        at += size
    if at != mapped.size:
        raise FormatError(f"{path} has {mapped.size} bytes; its llama2.c header {header} implies {at}")
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    metadata = dict(zip(names, header, strict=True))
    return Checkpoint(path, "llama2c", spec, canonical(stored, canonical_from_meta, spec, pairs=True), metadata)


def _bytes(mapped: U8, start: int, size: int) -> U8:
    return mapped[start : start + size]


def _order(spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Meta's names (`*`: one for each layer, stacked) and shapes as they follow each other; no name: skipped."""
    layers, dim, hidden = spec.n_layers, spec.dim, spec.hidden_dim
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    order: list[tuple[str, tuple[int, ...]]] = [
        ("tok_embeddings.weight", (spec.vocab_size, dim)),
        ("layers.*.attention_norm.weight", (layers, dim)),
        ("layers.*.attention.wq.weight", (layers, queries, dim)),
        ("layers.*.attention.wk.weight", (layers, keys, dim)),
        ("layers.*.attention.wv.weight", (layers, keys, dim)),
        ("layers.*.attention.wo.weight", (layers, dim, queries)),
        ("layers.*.ffn_norm.weight", (layers, dim)),
        ("layers.*.feed_forward.w1.weight", (layers, hidden, dim)),
        ("layers.*.feed_forward.w2.weight", (layers, dim, hidden)),
        ("layers.*.feed_forward.w3.weight", (layers, hidden, dim)),
        ("norm.weight", (dim,)),
        ("", (2, spec.max_context, spec.head_dim // 2)),  # cosines and sines, which model/rope.py computes
    ]
    return order if spec.tied_embeddings else [*order, ("output.weight", (spec.vocab_size, dim))]
