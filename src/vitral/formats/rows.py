"""The order of query and key rows: pairs side by side, or halves apart.

Rotary embedding turns pairs of rows of a head. Meta's and Mistral's own files and GGUF keep a pair
side by side (rows 2d and 2d + 1); Hugging Face and Vitral keep it half a head apart (rows d and
d + D / 2). Whole rows move, so a quantised matrix is reordered without touching a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["halves_to_pairs", "pairs_to_halves"]

U8 = NDArray[np.uint8]


def pairs_to_halves(raw: U8, head_dim: int) -> U8:
    """Rows (heads x D, bytes) with pairs side by side, reordered to halves apart.

    >>> pairs_to_halves(np.arange(4, dtype=np.uint8)[:, None], 4).ravel().tolist()
    [0, 2, 1, 3]
    """
    return np.ascontiguousarray(raw.reshape(-1, head_dim // 2, 2, raw.shape[1]).swapaxes(1, 2)).reshape(raw.shape)


def halves_to_pairs(raw: U8, head_dim: int) -> U8:
    """The inverse of `pairs_to_halves`."""
    return np.ascontiguousarray(raw.reshape(-1, 2, head_dim // 2, raw.shape[1]).swapaxes(1, 2)).reshape(raw.shape)
