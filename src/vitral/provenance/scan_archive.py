"""Archives that are no torch checkpoint: where their members would go, and how large they would become."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vitral.provenance.findings import Finding, person, refused, shown
from vitral.provenance.scan_config import YAML, scan_yaml
from vitral.provenance.scan_names import program_kind
from vitral.provenance.scan_pickle import check_pickle, looks_like_pickle

__all__ = ["PACKED", "scan_tar", "scan_zip"]

# Compressed streams by their first bytes: what is in them nobody sees who does not unpack them.
PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar", b"!<arch>\n": "ar", b"MSCF": "cab", b"ZF\x00": "joblib",
}  # fmt: skip
_MOST_MEMBERS = 10_000
_MOST_UNPACKED = 64 << 30
_LARGEST_RATIO = 200
_HEAD = 1 << 16


def scan_zip(path: Path, file: str) -> Iterator[Finding]:
    """A ZIP archive by its directory; of each member the beginning is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            yield from _sizes(file, path.stat().st_size, [entry.file_size for entry in entries])
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                yield refused(file, "zip-ambiguous", "a name appears twice, and programs differ in which one they take")
            for entry in entries:
                link = stat.S_ISLNK(entry.external_attr >> 16)
                yield from _place(file, entry.filename, link)
                if entry.flag_bits & 0x41:
                    yield refused(file, "archive-encrypted", f"member {shown(entry.filename)} is encrypted")
                elif not entry.is_dir() and not link:
                    with archive.open(entry) as member:
                        yield from _content(file, entry.filename, member.read(_HEAD))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        yield refused(file, "archive-damaged", f"the archive cannot be read: {str(error)[:120]}")
        return
    except Exception as error:  # noqa: BLE001  (zlib, lzma and bz2 each have errors of their own)
        yield refused(file, "archive-damaged", f"a member cannot be unpacked: {type(error).__name__}")
        return
    yield person(file, "archive", f"a ZIP archive of {len(names)} members, which Vitral does not read")


def scan_tar(path: Path, file: str) -> Iterator[Finding]:
    """A tar archive by its headers."""
    try:
        with tarfile.open(path, "r:") as archive:
            sizes: list[int] = []
            for entry in archive:
                sizes.append(entry.size)
                if len(sizes) > _MOST_MEMBERS:
                    break
                yield from _place(file, entry.name, entry.issym() or entry.islnk())
                if entry.isfile() and (member := archive.extractfile(entry)) is not None:
                    yield from _content(file, entry.name, member.read(_HEAD))
                elif not entry.isdir() and not entry.issym() and not entry.islnk():
                    yield refused(file, "archive-member", f"member {shown(entry.name)} is no file, folder or link")
            yield from _sizes(file, path.stat().st_size, sizes)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        yield refused(file, "archive-damaged", f"the archive cannot be read: {str(error)[:120]}")
        return
    yield person(file, "archive", f"a tar archive of {len(sizes)} members, which Vitral does not read")


def _sizes(file: str, packed: int, sizes: list[int]) -> Iterator[Finding]:
    total = sum(sizes)
    if len(sizes) > _MOST_MEMBERS:
        yield refused(file, "archive-bomb", f"over {_MOST_MEMBERS} members")
    if total > _MOST_UNPACKED or total > _LARGEST_RATIO * max(packed, 1 << 12):
        yield refused(file, "archive-bomb", f"{packed} bytes would become {total}")


def _place(file: str, name: str, link: bool) -> Iterator[Finding]:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not name or name[0] in "/\\" or ".." in parts or (len(name) > 1 and name[1] == ":") or "\0" in name:
        yield refused(file, "archive-traversal", f"member {shown(name)} would be unpacked outside of its folder")
    if link:
        yield refused(file, "archive-link", f"member {shown(name)} is a link; a model needs none")


def _content(file: str, name: str, head: bytes) -> Iterator[Finding]:
    kind = program_kind(head)
    if kind is not None:
        yield refused(file, "archive-program", f"member {shown(name)} is {kind}")
    if head.startswith((b"PK\x03\x04", *PACKED)):
        yield refused(
            file, "archive-nested", f"member {shown(name)} is an archive itself; unpack it and scan what comes out"
        )
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[1:2]:
        yield from _pickled(file, name, head)
    elif looks_like_pickle(head):
        yield refused(file, "pickle-code", f"member {shown(name)} is a pickle that looks names up")
    if head.startswith(b"\x93NUMPY") and b"'|O'" in head[:512]:
        yield refused(file, "numpy-objects", f"member {shown(name)} holds Python objects, which are a pickle")
    if head.startswith(b"\x89HDF\r\n\x1a\n") or (head.lstrip()[:1] == b"{" and b'"class_name"' in head):
        yield refused(
            file, "keras", f"member {shown(name)} is of a Keras model, which may carry code; take safetensors"
        )
    if PurePosixPath(name).suffix.lower() in YAML:
        yield from scan_yaml(head, file, f"member {shown(name)}: ")


def _pickled(file: str, name: str, head: bytes) -> Iterator[Finding]:
    from vitral.errors import VitralError

    try:
        check_pickle(io.BytesIO(head), f"member {shown(name)}")
    except VitralError as error:
        yield refused(file, "pickle-code", str(error).removeprefix(": "))
