"""Members of a ZIP archive as they lie in the file: stored, not compressed, never unpacked.

Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.3 (zip64). torch writes its checkpoints so.
Only what torch writes is read: compression, encryption and several disks are refused, members must
lie inside the file and not overlap.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, TruncatedFile, UnsafeFile
from vitral.formats.bounds import Cursor, map_file

__all__ = ["Member", "read_zip"]

_MOST_MEMBERS = 1 << 16
_LONGEST_NAME = 1 << 10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 field"
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_DATA_DESCRIPTOR = 24  # bytes that may follow a member: its sum and sizes once more (4.3.9)
_CAUSES_REFUSAL = 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patched, strongly encrypted, hidden names


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its bytes (a view of the mapped file) and the checksum that the archive states."""

    name: str
    data: NDArray[np.uint8]
    crc: int

    def checked(self, source: object) -> bytes:
        """A copy of the bytes; FormatError where the checksum differs."""
        data = self.data.tobytes()
        if zlib.crc32(data) != self.crc:
            raise FormatError(f"{source}: {self.name} does not match its checksum; download the file again")
        return data


def read_zip(path: Path) -> dict[str, Member]:
    """The members by name. Raises FormatError, TruncatedFile, or UnsafeFile for compressed ones."""
    mapped = map_file(path, 22)
    start, size, count = _directory(path, mapped)
    if count > _MOST_MEMBERS:
        raise FormatError(f"{path} has {count} members; at most {_MOST_MEMBERS} are allowed")
    if start + size > mapped.size:
        raise TruncatedFile(f"{path}: the archive's directory ends after the file; download it again")
    cursor = Cursor(mapped[start : start + size], f"{path}, directory")
    found: dict[str, Member] = {}
    ranges: list[tuple[int, int, str]] = []
    for _ in range(count):
        name, crc, n_bytes, local = _entry(cursor)
        if name in found:
            raise FormatError(f"{path}: member {name!r} appears twice")
        at = _data_start(path, mapped, local, name)
        if at + n_bytes > start:
            raise TruncatedFile(f"{path}: member {name!r} ends after the data; download it again")
        ranges.append((local, at + n_bytes, name))
        found[name] = Member(name, mapped[at : at + n_bytes], crc)
    ranges.sort()
    for (_, end, name), (next_start, _, next_name) in pairwise([(0, 0, ""), *ranges, (start, start, "")]):
        if next_start < end:
            raise FormatError(f"{path}: members {name!r} and {next_name!r} overlap")
        if next_start - end > _DATA_DESCRIPTOR:
            raise FormatError(
                f"{path}: {next_start - end} bytes {f'before {next_name!r}' if next_name else 'before the directory'} "
                "belong to no member; another program could find an archive there"
            )
    return found


def _directory(path: Path, mapped: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Start, size and entries of the directory, which the end of the file tells."""
    tail_start = max(0, mapped.size - 22 - _FULL16)
    tail = mapped[tail_start:].tobytes()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise TruncatedFile(f"{path} begins as a ZIP archive but has no directory at its end; download it again")
    disk, first_disk, here, count, size, start = struct.unpack_from("<HHHHII", tail, at + 4)
    locator = tail_start + at - 20
    if locator >= 0 and mapped[locator : locator + 4].tobytes() == _LOCATOR:
        _, where, _ = struct.unpack("<IQI", mapped[locator + 4 : locator + 20].tobytes())
        if where + 56 > locator or mapped[where : where + 4].tobytes() != _END64:
            raise FormatError(f"{path}: the archive's zip64 record is not where it should be")
        disk, first_disk, here, count, size, start = struct.unpack("<IIQQQQ", mapped[where + 16 : where + 56].tobytes())
    if disk or first_disk or here != count:
        raise FormatError(f"{path} is a part of an archive on several disks, which is not read")
    return start, size, count


def _entry(cursor: Cursor) -> tuple[str, int, int, int]:
    """Name, checksum, size and place of the next member of the directory."""
    if bytes(cursor.take(4, "a directory entry")) != _ENTRY:
        raise cursor.wrong("this is no directory entry")
    flags, method = struct.unpack("<HH", bytes(cursor.take(8, "a directory entry"))[4:])
    cursor.take(4, "time and date")
    crc, packed, n_bytes = struct.unpack("<III", cursor.take(12, "sizes"))
    name_size, extra_size, comment_size = struct.unpack("<HHH", cursor.take(6, "lengths"))
    local = struct.unpack("<I", bytes(cursor.take(12, "the place"))[8:])[0]
    if name_size > _LONGEST_NAME:
        raise cursor.wrong(f"a member's name has {name_size} bytes; at most {_LONGEST_NAME} are allowed")
    try:
        name = str(cursor.take(name_size, "a name"), "utf-8")
    except UnicodeDecodeError:
        raise cursor.wrong("a member's name is not UTF-8") from None
    extra = bytes(cursor.take(extra_size, "extra fields"))
    cursor.take(comment_size, "a comment")
    if method != 0 or flags & _CAUSES_REFUSAL:
        raise UnsafeFile(f"{cursor.source}: member {name!r} is compressed or encrypted; torch stores members plainly")
    sizes = _zip64(cursor, name, extra, (n_bytes, packed, local).count(_FULL32))
    n_bytes, packed, local = (next(sizes) if value == _FULL32 else value for value in (n_bytes, packed, local))
    if packed != n_bytes:
        raise UnsafeFile(f"{cursor.source}: member {name!r} is stored but has two sizes, {packed} and {n_bytes}")
    return name, crc, n_bytes, local


def _zip64(cursor: Cursor, name: str, extra: bytes, wanted: int) -> Iterator[int]:
    """The sizes that do not fit 32 bits, in their order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1 and size >= 8 * wanted and at + 4 + size <= len(extra):
            return iter(struct.unpack_from(f"<{wanted}Q", extra, at + 4))
        at += 4 + size
    if wanted:
        raise cursor.wrong(f"member {name!r} lacks its zip64 sizes")
    return iter(())


def _data_start(path: Path, mapped: NDArray[np.uint8], local: int, name: str) -> int:
    """Where the bytes of a member begin: after its own header, which must name it again."""
    if local + 30 > mapped.size:
        raise TruncatedFile(f"{path}: member {name!r} begins after the end of the file; download it again")
    head = mapped[local : local + 30].tobytes()
    name_size, extra_size = (int(n) for n in struct.unpack_from("<HH", head, 26))
    if head[:4] != _LOCAL or mapped[local + 30 : local + 30 + name_size].tobytes() != name.encode():
        raise FormatError(f"{path}: member {name!r} is not where the directory says")
    return local + 30 + name_size + extra_size
