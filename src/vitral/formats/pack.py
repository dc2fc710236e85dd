"""From codes to block bytes: the other direction of `quants.py`, type by type.

A packer gets what its decoder gives before any product is formed: stored codes (blocks, block)
as uint8, the f16 numbers of a block (blocks, 1), and for the types of 256 the integer scales
and minima of the groups (blocks, groups). It returns uint8 (blocks, bytes per block).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["PACKERS"]

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
F16 = NDArray[np.float16]
Packer = Callable[[U8, F16, F16, I16, I16], U8]


def _join(*parts: NDArray[np.generic]) -> U8:
    """Fields side by side, each a row of a block."""
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=-1)


def _nibbles(codes: U8, width: int) -> U8:
    """First half of every `width` elements in low halves, second half in high halves."""
    pairs: U8 = codes.reshape(len(codes), -1, 2, width // 2) & np.uint8(15)
    both: U8 = pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)
    return both.reshape(len(codes), -1)


def _pairs_of_bits(codes: U8) -> U8:
    """Element 128 n + 32 j + l goes to byte l of half n, bits 2 j and 2 j + 1."""
    lanes: U8 = codes.reshape(len(codes), 2, 4, 32) & np.uint8(3)
    two, four, six = np.uint8(2), np.uint8(4), np.uint8(6)
    byte: U8 = lanes[:, :, 0] | lanes[:, :, 1] << two | lanes[:, :, 2] << four | lanes[:, :, 3] << six
    return byte.reshape(len(codes), 64)


def _bits_by_group(bits: U8) -> U8:
    """Element 32 g + l goes to bit g of byte l."""
    return np.packbits(bits.reshape(len(bits), 8, 32).transpose(0, 2, 1), axis=-1, bitorder="little")[..., 0]


def _bits_by_element(bits: U8) -> U8:
    return np.packbits(bits, axis=-1, bitorder="little")


def _plain_4(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, _nibbles(codes, 32))


def _q4_1(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, m, _nibbles(codes, 32))


def _q5_0(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, _bits_by_element(codes >> np.uint8(4)), _nibbles(codes, 32))


def _q5_1(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, m, _bits_by_element(codes >> np.uint8(4)), _nibbles(codes, 32))


def _q8_0(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, codes)


def _q2_k(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join((scales | minima << 4).astype(np.uint8), _pairs_of_bits(codes), d, m)


def _q3_k(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    stored = (scales + 32).astype(np.uint8)
    low = stored[:, :8] & 15 | (stored[:, 8:] & 15) << 4
    high = (stored >> 4).reshape(len(stored), 4, 4)
    high = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return _join(_bits_by_group(codes >> np.uint8(2)), _pairs_of_bits(codes), low, high, d)


def _six_bit_pairs(scales: I16, minima: I16) -> U8:
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    return _join(s[:, :4] | (s[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4)


def _q4_k(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, m, _six_bit_pairs(scales, minima), _nibbles(codes, 64))


def _q5_k(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(d, m, _six_bit_pairs(scales, minima), _bits_by_group(codes >> np.uint8(4)), _nibbles(codes, 64))


def _q6_k(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    return _join(_nibbles(codes, 128), _pairs_of_bits(codes >> np.uint8(4)), scales.astype(np.int8), d)


def _iq4_xs(codes: U8, d: F16, m: F16, scales: I16, minima: I16) -> U8:
    stored = (scales + 32).astype(np.uint16)
    upper = ((stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=-1, keepdims=True, dtype=np.uint16)
    lower = (stored[:, 0::2] & 15 | (stored[:, 1::2] & 15) << 4).astype(np.uint8)
    return _join(d, upper.astype("<u2"), lower, _nibbles(codes, 32))


PACKERS: dict[str, Packer] = {
    "Q4_0": _plain_4, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _plain_4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
}  # fmt: skip
