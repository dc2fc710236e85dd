"""Event files are what TensorBoard's reader takes, bytes and checksums included."""

from __future__ import annotations

import struct
from pathlib import Path

from vitral.tune.tensorboard import append_scalars, crc32c


def records(path: Path) -> list[bytes]:
    """The records of a TFRecord file, both checksums of each verified."""
    data, found = path.read_bytes(), list[bytes]()

    def masked(part: bytes) -> int:
        crc = crc32c(part)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32

    while data:
        size = int.from_bytes(data[:8], "little")
        head, body, tail = data[8:12], data[12 : 12 + size], data[12 + size : 16 + size]
        assert int.from_bytes(head, "little") == masked(data[:8])
        assert int.from_bytes(tail, "little") == masked(body)
        found.append(body)
        data = data[16 + size :]
    return found


def test_checksums_are_those_of_rfc_3720() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_scalars_are_appended_behind_the_version(tmp_path: Path) -> None:
    """The bytes are the protobuf messages of event.proto, worked out by hand."""
    append_scalars(tmp_path, 1, {"train/loss": 2.5}, now=1.0)
    path = append_scalars(tmp_path, 300, {"test/loss": 0.5}, now=2.0)
    version, first, second = records(path)
    assert version == b"\x09" + struct.pack("<d", 1.0) + b"\x1a\x0dbrain.Event:2"
    value = b"\x0a\x0atrain/loss\x15" + struct.pack("<f", 2.5)
    assert first == b"\x09" + struct.pack("<d", 1.0) + b"\x10\x01\x2a\x13\x0a\x11" + value
    assert second[9:12] == b"\x10\xac\x02"
