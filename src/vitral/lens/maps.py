"""Attention for a picture: bytes instead of floats, packed rows, everything or the strongest of each row."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.model.law import F32

__all__ = ["MOST_CELLS", "STRONGEST", "AttentionMaps", "strongest", "whole"]

MOST_CELLS = 6_000_000
"""Up to so many weights of all heads together are kept whole; of longer texts each head keeps its strongest."""

STRONGEST = 8

_Parts = list[tuple[bytes, bytes]]


class AttentionMaps:
    """Collects the patterns of a text as they arise; `document` is what a picture needs.

    Each weight becomes a byte, the nearest of the steps of 1/255.
    """

    def __init__(self, n_layers: int, n_heads: int, n_tokens: int) -> None:
        self._whole = n_layers * n_heads * n_tokens * (n_tokens + 1) // 2 <= MOST_CELLS
        self._n_tokens, self._n_layers = n_tokens, n_layers
        self._mean = np.zeros((n_tokens, n_tokens), np.float32)
        self._layers: list[_Parts] = [[] for _ in range(n_layers)]
        self._heads: list[list[_Parts]] = [[[] for _ in range(n_heads)] for _ in range(n_layers)]

    def add(self, layer: int, first: int, pattern: F32) -> None:
        """The next rows of a layer's pattern (H, n, S), from the token `first` on."""
        mean = pattern.mean(0)
        n, s = mean.shape
        self._mean[first : first + n, :s] += mean / self._n_layers
        keep = whole if self._whole else strongest
        self._layers[layer].append(keep(mean, first))
        for parts, rows in zip(self._heads[layer], pattern, strict=True):
            parts.append(keep(rows, first))

    def document(self) -> dict[str, Any]:
        """Maps as base64 text; docs/reference/inspect-json.md says how to read them."""
        return {
            "size": self._n_tokens,
            "encoding": "whole" if self._whole else "strongest",
            "mean": _text([whole(self._mean, 0)]),
            "layers": [_text(parts) for parts in self._layers],
            "heads": [[_text(parts) for parts in heads] for heads in self._heads],
        }


def whole(rows: F32, first: int) -> tuple[bytes, bytes]:
    """Rows (n, S) up to each token itself, one byte a weight.

    >>> whole(np.array([[1, 0], [0.2, 0.8]], np.float32), 0)[1].hex()
    'ff33cc'
    """
    n = len(rows)
    cut = np.arange(rows.shape[1])[None] <= np.arange(first, first + n)[:, None]
    if rows.shape[1] < first + n:
        raise ValueError(f"rows of {rows.shape[1]} columns; the last of them needs {first + n}")
    return b"", _bytes(rows[cut]).tobytes()


def strongest(rows: F32, first: int) -> tuple[bytes, bytes]:
    """The `STRONGEST` largest weights of each row: columns as little-endian uint16, and the weights.

    A row with fewer weights is filled up with weights of 0.
    """
    wide = rows if rows.shape[1] >= STRONGEST else np.pad(rows, ((0, 0), (0, STRONGEST - rows.shape[1])))
    columns = np.argpartition(-wide, STRONGEST - 1, axis=1)[:, :STRONGEST]
    return columns.astype("<u2").tobytes(), _bytes(np.take_along_axis(wide, columns, 1)).tobytes()


def _bytes(values: F32) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _text(parts: _Parts) -> str:
    return base64.b64encode(b"".join(a for a, _ in parts) + b"".join(b for _, b in parts)).decode("ascii")
