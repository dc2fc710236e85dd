"""Files by where they are and what they are called: links, hidden ones, programs, names that mislead."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from vitral.formats.bounds import map_file
from vitral.provenance.findings import Finding, note, person, refused, shown

__all__ = ["hidden_archive", "program_kind", "scan_name", "walk"]

_MOST_FILES = 10_000
_USUAL_HIDDEN = frozenset(
    [".gitattributes", ".gitignore", ".cache", ".huggingface", ".locks", ".DS_Store", ".mdl", ".msc", ".mv"]
)
_PROGRAMS = {
    b"\x7fELF": "a program or library of Linux",
    b"MZ": "a program or library of Windows",
    b"\xfe\xed\xfa\xce": "a program of macOS",
    b"\xfe\xed\xfa\xcf": "a program of macOS",
    b"\xcf\xfa\xed\xfe": "a program of macOS",
    b"\xce\xfa\xed\xfe": "a program of macOS",
    b"\xca\xfe\xba\xbe": "a program of macOS or Java",
    b"#!": "a script",
    b"\0asm": "a WebAssembly program",
    b"dex\n": "a program of Android",
}
_SCRIPT_ENDINGS = frozenset(
    [
        ".sh",
        ".bash",
        ".bat",
        ".cmd",
        ".ps1",
        ".vbs",
        ".js",
        ".jse",
        ".wsf",
        ".hta",
        ".scr",
        ".com",
        ".msi",
        ".lnk",
        ".desktop",
        ".jar",
        ".app",
        ".pyc",
        ".pyo",
        ".so",
        ".dll",
    ]
)


def walk(root: Path) -> Iterator[tuple[Path, str, Finding | None]]:
    """Every entry below a folder as (path, relative name, finding); links are told, never followed to a folder."""
    folders, count = [root], 0
    while folders:
        folder = folders.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path, name = Path(entry.path), str(Path(entry.path).relative_to(root))
            count += 1
            if count > _MOST_FILES:
                yield path, name, refused(name, "too-many", f"over {_MOST_FILES} files; give the model's own folder")
                return
            if entry.is_symlink():
                yield path, name, _link(root, path, name)
            elif entry.is_dir():
                if entry.name == ".git":
                    yield path, name, person(name, "hidden", "a Git folder is not scanned; its hooks are programs")
                else:
                    folders.append(path)
            elif not entry.is_file():
                yield path, name, refused(name, "special-file", "neither file nor folder: a pipe, socket or device")
            else:
                yield path, name, None


def stays_inside(root: Path, path: Path) -> bool:
    """Whether what a path leads to lies in the folder, or in the Hub's own cache, which is made of links."""
    target, real = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    # huggingface_hub: models--owner--name/snapshots/REVISION/file -> ../../blobs/DIGEST
    cache = real.parent.parent if real.parent.name == "snapshots" else None
    return target.is_relative_to(real) or (cache is not None and target.parent == cache / "blobs")


def _link(root: Path, path: Path, name: str) -> Finding | None:
    """None for a link to a file that stays inside."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        return refused(name, "link-broken", f"a link to {shown(os.readlink(path))}, which is not there")
    if not stat.S_ISREG(target.stat().st_mode):
        return refused(name, "link-folder", f"a link to {shown(os.readlink(path))}, which is no file")
    if stays_inside(root, path):
        return None
    return refused(name, "link-outside", f"a link to {shown(os.readlink(path))}, which lies outside of the folder")


def scan_name(path: Path, name: str, head: bytes) -> Iterator[Finding]:
    """What the name, the mode and the first bytes of a regular file say."""
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") for c in name):
        yield refused(name, "name-misleads", "the name has invisible characters or turns the direction of writing")
    hidden = [part for part in Path(name).parts if part.startswith(".") and part not in _USUAL_HIDDEN]
    if hidden:
        yield person(name, "hidden", f"{shown(hidden[0])} is hidden")
    kind = program_kind(head)
    if kind is not None:
        yield refused(name, "program", f"{kind}; a model is data")
    elif path.suffix.lower() in _SCRIPT_ENDINGS:
        yield refused(
            name, "program", f"a file of kind {path.suffix.lower()} is run by a double click; a model is data"
        )
    elif path.suffix.lower() in (".py", ".ipynb"):
        yield person(name, "python", "Python source: nothing here runs it, trust_remote_code elsewhere would")
    if path.stat().st_mode & 0o111:
        yield note(name, "mode", "marked as executable")


def program_kind(head: bytes) -> str | None:
    """What kind of program begins so, or None.

    >>> program_kind(b"#!/bin/sh"), program_kind(b"GGUF")
    ('a script', None)
    """
    return next((kind for magic, kind in _PROGRAMS.items() if head.startswith(magic)), None)


def hidden_archive(path: Path) -> bool:
    """Whether a file that is no archive by its beginning is one by its end: two programs would see two files."""
    data = map_file(path)
    tail = data[-(22 + 0xFFFF) :].tobytes()
    at = tail.rfind(b"PK\x05\x06")
    return at >= 0 and at + 22 <= len(tail) and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)
