"""Blind damage: bits, bytes, ranges, lengths and numbers, without a thought for the layout."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 24, 31, 32, 33, 64, 100, 127, 128, 255, 256, 1000, 4096, 65535, 65536]
NUMBERS += [1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 53) + 1, 1 << 60]
NUMBERS += [1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]


def blind(data: bytes, rng: Random, structure: int) -> bytes:
    """One to four random changes, four of five in the structure."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        end = min(structure, len(out)) if rng.random() < 0.8 else len(out)
        at = rng.randrange(end) if end else 0
        n = rng.choice((1, 1, 2, 4, 8, 16, 64, 300))
        rng.choice(BLIND)(out, at, n, rng)
    return bytes(out)


def _flip(out: bytearray, at: int, n: int, rng: Random) -> None:
    if out:
        out[at] ^= 1 << rng.randrange(8)


def _set(out: bytearray, at: int, n: int, rng: Random) -> None:
    out[at : at + n] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) * len(out[at : at + n])


def _noise(out: bytearray, at: int, n: int, rng: Random) -> None:
    out[at : at + n] = rng.randbytes(len(out[at : at + n]))


def _truncate(out: bytearray, at: int, n: int, rng: Random) -> None:
    del out[at:]


def _insert(out: bytearray, at: int, n: int, rng: Random) -> None:
    out[at:at] = rng.randbytes(n)


def _remove(out: bytearray, at: int, n: int, rng: Random) -> None:
    del out[at : at + n]


def _repeat(out: bytearray, at: int, n: int, rng: Random) -> None:
    out[at:at] = out[at : at + n] * rng.choice((1, 1, 2, 20))


def _exchange(out: bytearray, at: int, n: int, rng: Random) -> None:
    to = rng.randrange(len(out)) if out else 0
    a, b = out[at : at + n], out[to : to + n]
    out[at : at + len(b)] = b
    out[to : to + len(a)] = a


def _number(out: bytearray, at: int, n: int, rng: Random) -> None:
    size = rng.choice((1, 2, 4, 4, 8, 8, 8))
    number = rng.choice([*NUMBERS, len(out), len(out) - 1, len(out) + 1, at])
    out[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _add(out: bytearray, at: int, n: int, rng: Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    number = int.from_bytes(out[at : at + size], "little") + rng.choice((-32, -8, -2, -1, 1, 2, 8, 32))
    out[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")


BLIND: list[Callable[[bytearray, int, int, Random], None]] = [
    _flip, _flip, _set, _noise, _truncate, _insert, _remove, _repeat, _exchange, _number, _number, _number, _add,
]  # fmt: skip
