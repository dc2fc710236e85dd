"""Event files as TensorBoard reads them: scalars by step, appended as they come, without its package.

A file is a row of TFRecords (length, its checksum, bytes, their checksum; CRC-32C, masked), each an `Event`
message. Of the messages only what scalars need is written: wall_time 1, step 2, file_version 3, summary 5,
in which value 1 has tag 1 and simple_value 2 (tensorflow/core/util/event.proto, framework/summary.proto).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from vitral.tune.files import append_whole, writing

__all__ = ["append_scalars", "crc32c"]

_FILE = "events.out.tfevents.vitral"


def append_scalars(
    folder: Path, step: int, scalars: Mapping[str, float], now: float | None = None, then: str = "make room"
) -> Path:
    """Append the scalars of a step to the folder's event file, which begins with the format's version.

    Raises TuneError, with `then` for what to do, where they cannot be written; the file is then as it was.
    """
    at = time.time() if now is None else now
    path = folder / _FILE
    with writing(folder, then):
        folder.mkdir(parents=True, exist_ok=True)
    values = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in scalars.items()
    )
    event = b"\x09" + struct.pack("<d", at) + b"\x10" + _varint(step) + _bytes(5, values)
    new = not path.exists() or not path.stat().st_size
    first = _record(b"\x09" + struct.pack("<d", at) + _bytes(3, b"brain.Event:2")) if new else b""
    append_whole(path, first + _record(event), then)
    return path


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _bytes(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
