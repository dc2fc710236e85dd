"""Files that are neither GGUF nor safetensors nor JSON: pickles, archives, text, and binaries of other programs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from vitral.provenance.findings import Finding, person, refused
from vitral.provenance.scan_archive import PACKED, scan_tar, scan_zip
from vitral.provenance.scan_config import YAML, scan_yaml
from vitral.provenance.scan_pickle import looks_like_pickle, scan_numpy, scan_pickle, scan_torch

__all__ = ["scan_other"]

_LARGEST_TEXT_PROBE = 1 << 20
_KNOWN_BINARIES = {
    b"\x89PNG": "picture", b"\xff\xd8\xff": "picture", b"GIF8": "picture", b"RIFF": "media", b"%PDF": "document",
}  # fmt: skip


def scan_other(path: Path, name: str, head: bytes, kind: str) -> Generator[Finding, None, str]:
    """A torch checkpoint, a pickle, an archive, text, or a binary that is no model; returns the kind.

    `head` are its first 16 KB, `kind` what they look like.
    """
    if kind == "torch":
        return (yield from _zip(path, name))
    if kind == "pickle":
        yield from scan_pickle(path, name)
        return kind
    packed = next((what for magic, what in PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        yield refused(name, "packed", f"{packed}: what is in it cannot be seen; unpack it and scan what comes out")
        return packed
    if head.startswith(b"\x93NUMPY"):
        yield from scan_numpy(path, name)
        return "numpy"
    if head[257:262] == b"ustar":
        yield from scan_tar(path, name)
        return "tar"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        yield refused(name, "keras", "HDF5: Keras models of this kind may carry code; take safetensors or GGUF")
        return "hdf5"
    if looks_like_pickle(head if len(head) == path.stat().st_size else path.read_bytes()[:_LARGEST_TEXT_PROBE]):
        yield refused(name, "pickle-code", "a pickle that looks names up; it begins like text to get past a scanner")
        return "pickle"
    if kind == "text":
        if path.suffix.lower() in YAML:
            with path.open("rb") as stream:
                yield from scan_yaml(stream.read(_LARGEST_TEXT_PROBE), name)
        return "text"
    known = next((what for magic, what in _KNOWN_BINARIES.items() if head.startswith(magic)), None)
    if known is None and not _is_vocabulary(path):
        yield person(name, "unknown", "no kind of file that is known here")
    return known or kind


def _zip(path: Path, name: str) -> Generator[Finding, None, str]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - (1 << 20)))
        torch = b"data.pkl" in stream.read()  # in the directory at the end
    yield from scan_torch(path, name) if torch else scan_zip(path, name)
    return "torch" if torch else "zip"


def _is_vocabulary(path: Path) -> bool:
    from vitral.tokenizer.load import looks_like_vocabulary

    return path.stat().st_size <= 64 << 20 and looks_like_vocabulary(path.read_bytes())
