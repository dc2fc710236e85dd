"""Rows of matrices, and activations as the law multiplies them with quantised ones: rounded to eight bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitral.formats.quants import decode
from vitral.formats.weights import Tensor
from vitral.model.law import F32, Quantised

__all__ = ["is_quantised", "rounded", "rows_of"]


def is_quantised(tensor: Tensor) -> bool:
    """Whether the law rounds what is multiplied with this matrix."""
    return isinstance(decode(tensor.type.name, tensor.raw()[:1]), Quantised)


def rows_of(tensor: Tensor, which: NDArray[np.int64]) -> F32:
    """Some rows of a matrix (n, columns), without dequantising the others."""
    values = decode(tensor.type.name, np.ascontiguousarray(tensor.raw()[which]))
    return values.dequantize() if isinstance(values, Quantised) else values.reshape(len(which), -1)


def rounded(x: F32) -> F32:
    """Rows (T, K), K a multiple of 32, as codes of eight bits times their scales.

    >>> rounded(np.linspace(-1, 1, 32, dtype=np.float32)[None])[0, 0]
    np.float32(-1.0)
    """
    from vitral.native import quantise_rows  # the law's bits

    codes, scales = quantise_rows(np.ascontiguousarray(x, np.float32))
    return codes.astype(np.float32) * np.repeat(scales, codes.shape[-1] // scales.shape[-1], axis=-1)
