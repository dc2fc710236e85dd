"""The bytes of every weight type: what GGUF blocks hold, and how to read them.

Each decoder turns the blocks of a matrix into the integers and scales of `law.Quantised`; the
dequantised value is always `scale * code + minimum`. Layouts as in llama.cpp's `ggml-common.h`;
the tests compare with the package `gguf`, bit for bit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError
from vitral.model.law import F32, I8, Quantised

__all__ = ["BY_GGML_ID", "IQ4_VALUES", "TYPES", "TypeInfo", "WeightType", "decode", "row_bytes"]

WeightType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
]  # fmt: skip

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A weight type: `block` elements take `bytes_per_block` bytes; `ggml_id` is its number in GGUF."""

    name: WeightType
    block: int
    bytes_per_block: int
    ggml_id: int

    @property
    def bits_per_weight(self) -> float:
        """Storage of one element, scales included."""
        return 8 * self.bytes_per_block / self.block


TYPES: dict[str, TypeInfo] = {
    info.name: info
    for info in (
        TypeInfo("F32", 1, 4, 0),
        TypeInfo("F16", 1, 2, 1),
        TypeInfo("Q4_0", 32, 18, 2),
        TypeInfo("Q4_1", 32, 20, 3),
        TypeInfo("Q5_0", 32, 22, 6),
        TypeInfo("Q5_1", 32, 24, 7),
        TypeInfo("Q8_0", 32, 34, 8),
        TypeInfo("Q2_K", 256, 84, 10),
        TypeInfo("Q3_K", 256, 110, 11),
        TypeInfo("Q4_K", 256, 144, 12),
        TypeInfo("Q5_K", 256, 176, 13),
        TypeInfo("Q6_K", 256, 210, 14),
        TypeInfo("IQ4_NL", 32, 18, 20),
        TypeInfo("IQ4_XS", 256, 136, 23),
        TypeInfo("BF16", 1, 2, 30),
    )
}
BY_GGML_ID: dict[int, TypeInfo] = {info.ggml_id: info for info in TYPES.values()}

# The 16 levels of IQ4_NL and IQ4_XS, spaced as a bell curve wants them (llama.cpp, `kvalues_iq4nl`).
IQ4_VALUES: I8 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def type_info(name: str) -> TypeInfo:
    """The type of this name; FormatError with the nearest names for an unknown one."""
    if name not in TYPES:
        near = difflib.get_close_matches(name.upper(), TYPES, n=3) or list(TYPES)
        raise FormatError(f"no weight type is called {name!r}; the nearest: {', '.join(near)}")
    return TYPES[name]


def row_bytes(name: str, columns: int) -> int:
    """Bytes of a row; FormatError where a row is not whole blocks.

    >>> row_bytes("Q4_0", 64)
    36
    """
    info = type_info(name)
    if columns % info.block:
        raise FormatError(f"{name} wants rows of a multiple of {info.block} elements, found {columns}")
    return columns // info.block * info.bytes_per_block


def decode(name: str, raw: U8) -> Quantised | F32:
    """Read rows of blocks, uint8 (rows, bytes per row).

    Float types give float32 (rows, columns), the others a Quantised.
    """
    info = type_info(name)
    if raw.ndim != 2 or raw.shape[1] % info.bytes_per_block:
        raise FormatError(f"{name} wants rows of a multiple of {info.bytes_per_block} bytes, found {raw.shape}")
    if name in _FLOATS:
        return _FLOATS[name](np.ascontiguousarray(raw))
    blocks = np.ascontiguousarray(raw).reshape(raw.shape[0], -1, info.bytes_per_block)
    codes, scales, minima = _DECODERS[name](blocks)
    rows, columns = raw.shape[0], blocks.shape[1] * info.block
    scales = np.ascontiguousarray(scales.reshape(rows, -1), np.float32)
    return Quantised(
        np.ascontiguousarray(codes.reshape(rows, columns), np.int8),
        scales,
        None if minima is None else np.ascontiguousarray(minima.reshape(rows, -1), np.float32),
        columns // scales.shape[1] if columns else 32,
    )


Decoded = tuple[NDArray[np.int8], F32, F32 | None]
"""codes (rows, blocks, block), scales and minima (rows, blocks, groups of a block)."""


def _half(b: U8, at: int) -> F32:
    return np.ascontiguousarray(b[..., at : at + 2]).view(np.float16).astype(np.float32)  # (rows, blocks, 1)


def _nibbles(q: U8) -> NDArray[np.int8]:
    """Low halves, then high halves, along the last axis."""
    both: U8 = np.concatenate([q & 15, q >> 4], axis=-1)
    return both.view(np.int8)


def _fifth_bits(b: U8, at: int) -> NDArray[np.int8]:
    """Bit j of a 32-bit word belongs to element j: 0 or 16."""
    return np.unpackbits(b[..., at : at + 4], axis=-1, bitorder="little").astype(np.int8) << 4


def _q4_0(b: U8) -> Decoded:
    """d f16, 16 bytes of nibbles; code = nibble - 8."""
    return _nibbles(b[..., 2:]) - np.int8(8), _half(b, 0), None


def _q4_1(b: U8) -> Decoded:
    """d f16, m f16, 16 bytes of nibbles."""
    return _nibbles(b[..., 4:]), _half(b, 0), _half(b, 2)


def _q5_0(b: U8) -> Decoded:
    """d f16, fifth bits of 32 elements, 16 bytes of nibbles; code = 5 bits - 16."""
    return (_nibbles(b[..., 6:]) | _fifth_bits(b, 2)) - np.int8(16), _half(b, 0), None


def _q5_1(b: U8) -> Decoded:
    """d f16, m f16, fifth bits, 16 bytes of nibbles."""
    return _nibbles(b[..., 8:]) | _fifth_bits(b, 4), _half(b, 0), _half(b, 2)


def _q8_0(b: U8) -> Decoded:
    """d f16, 32 signed bytes."""
    return b[..., 2:].view(np.int8), _half(b, 0), None


def _iq4_nl(b: U8) -> Decoded:
    """d f16, 16 bytes of nibbles that point into IQ4_VALUES."""
    return IQ4_VALUES[_nibbles(b[..., 2:])], _half(b, 0), None


def _pairs_of_bits(q: U8) -> U8:
    """64 bytes hold 256 pairs of bits: byte l of half n has elements 128 n + 32 j + l, j = 0 to 3."""
    halves = q.reshape(*q.shape[:-1], 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    pairs: U8 = (halves >> shifts) & np.uint8(3)
    return pairs.reshape(*q.shape[:-1], 256)


def _q2_k(b: U8) -> Decoded:
    """16 bytes of scale (low half) and minimum (high half), 64 bytes of pairs of bits, d f16, dmin f16."""
    scales, minima = b[..., :16] & 15, b[..., :16] >> 4
    return _pairs_of_bits(b[..., 16:80]).astype(np.int8), _half(b, 80) * scales, -(_half(b, 82) * minima)


def _q3_k(b: U8) -> Decoded:
    """32 bytes of third bits (0 means minus 4), 64 bytes of pairs of bits, 12 bytes of 6-bit scales, d f16."""
    third = (b[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # (..., 8, 32)
    codes = _pairs_of_bits(b[..., 32:96]).astype(np.int8) - 4 * (1 - third.reshape(*b.shape[:-1], 256).astype(np.int8))
    packed = b[..., 96:108]
    low = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    high = (packed[..., None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = (low | high.reshape(*low.shape) << 4).astype(np.int8) - np.int8(32)
    return codes, _half(b, 108) * scales, None


def _six_bit_pairs(s: U8) -> tuple[U8, U8]:
    """12 bytes hold 8 scales and 8 minima of 6 bits."""
    first, second, third = s[..., 0:4], s[..., 4:8], s[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=-1)
    return scales, minima


def _q4_k(b: U8) -> Decoded:
    """d f16, dmin f16, 12 bytes of scales and minima, 4 x 32 bytes of nibbles."""
    scales, minima = _six_bit_pairs(b[..., 4:16])
    codes = _nibbles(b[..., 16:].reshape(*b.shape[:-1], 4, 32))
    return codes, _half(b, 0) * scales, -(_half(b, 2) * minima)


def _q5_k(b: U8) -> Decoded:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte l belongs to group g."""
    scales, minima = _six_bit_pairs(b[..., 4:16])
    fifth = (b[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # (..., 8, 32)
    codes = _nibbles(b[..., 48:].reshape(*b.shape[:-1], 4, 32)).reshape(fifth.shape)
    return codes | fifth.astype(np.int8) << 4, _half(b, 0) * scales, -(_half(b, 2) * minima)


def _q6_k(b: U8) -> Decoded:
    """128 bytes of nibbles, 64 bytes of upper pairs of bits, 16 signed scales, d f16; code = 6 bits - 32."""
    low = _nibbles(b[..., :128].reshape(*b.shape[:-1], 2, 64)).reshape(*b.shape[:-1], 256)
    codes = (low | _pairs_of_bits(b[..., 128:192]).astype(np.int8) << 4) - np.int8(32)
    return codes, _half(b, 208) * b[..., 192:208].view(np.int8), None


def _iq4_xs(b: U8) -> Decoded:
    """d f16, 8 x 2 upper and 8 x 4 lower bits of scales, 8 x 16 bytes of nibbles that point into IQ4_VALUES."""
    upper = np.ascontiguousarray(b[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    lower = np.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], axis=-1).reshape(upper.shape)
    scales = (lower | upper.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    codes = IQ4_VALUES[_nibbles(b[..., 8:].reshape(*b.shape[:-1], 8, 16))]
    return codes, _half(b, 0) * scales, None


_DECODERS: dict[str, Callable[[U8], Decoded]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
}  # fmt: skip
_FLOATS: dict[str, Callable[[U8], F32]] = {
    "F32": lambda raw: raw.view("<f4").astype(np.float32, copy=False),
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "BF16": lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32),
}
