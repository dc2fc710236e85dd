"""Digests of files and of tensors.

A file's digest says that the bytes are the same; the digest of the weights (`formats.weights`) says that the
model is: whoever edits a template or a licence tag changes the first and not the second. `gguf_hash` gives
the sums of llama.cpp's example of that name, tensor by tensor and of the whole.

SHA-256 is one chain, so a file takes one core; files are digested side by side, the largest first.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitral.errors import FormatError, ModelNotFound
from vitral.formats.gguf import GgufFile

__all__ = ["FileDigest", "GgufHash", "digest_files", "gguf_hash", "model_files", "sha256_of"]

_PIECE = 1 << 20
# The name space under which gguf-hash makes version 5 UUIDs of models (llama.cpp, examples/gguf-hash).
_NAMESPACE = uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256 in hexadecimal, and the size in bytes."""

    sha256: str
    n_bytes: int


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; `progress` is told of each piece's bytes."""
    digest = hashlib.sha256()
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while n := file.readinto(buffer):
            digest.update(view[:n])
            if progress is not None:
                progress(n)
    return digest.hexdigest()


def model_files(path: Path) -> dict[str, Path]:
    """Every regular file of a model by its name relative to the folder, sorted; links to files count as files."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise ModelNotFound(f"{path} does not exist; give a model file or folder")
    return {str(file.relative_to(path)): file for file in sorted(_below(path))}


def _below(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def digest_files(
    files: Mapping[str, Path], threads: int | None = None, progress: Callable[[int, int], object] | None = None
) -> dict[str, FileDigest]:
    """The digest of each file, `threads` at once; `progress(done, all)` counts bytes.

    Takes one megabyte of memory for each thread. Raises FormatError for a file that cannot be read.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    done, total = 0, sum(sizes.values())

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    def one(name: str) -> FileDigest:
        try:
            return FileDigest(sha256_of(files[name], count), sizes[name])
        except OSError as error:
            raise FormatError(f"{files[name]} cannot be read: {error.strerror}") from None

    largest_first = sorted(files, key=lambda name: -sizes[name])
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(largest_first, pool.map(one, largest_first), strict=True))
    return {name: found[name] for name in files}


@dataclass(frozen=True, slots=True)
class GgufHash:
    """Sums over the bytes of tensors in the order of the file: of the whole, and SHA-256 of each."""

    sha256: str
    sha1: str
    uuid: str
    tensors: dict[str, str]

    def lines(self, name: str) -> list[str]:
        """What `gguf-hash --sha1 --sha256 --uuid` prints, without the sums of single tensors by SHA-1."""
        each = [("sha256", digest, f"{name}:{tensor}") for tensor, digest in self.tensors.items()]
        whole = [("sha1", self.sha1, name), ("sha256", self.sha256, name), ("uuid", self.uuid, name)]
        return [f"{kind:<8}  {digest}  {what}" for kind, digest, what in each + whole]


def gguf_hash(path: Path) -> GgufHash:
    """The sums that `gguf-hash` gives for a file; of a split model, over all parts in order."""
    sha256, sha1, named = hashlib.sha256(), hashlib.sha1(), hashlib.sha1(_NAMESPACE.bytes)
    tensors: dict[str, str] = {}
    with ThreadPoolExecutor(4) as pool:
        for name, tensor in GgufFile.open(path).tensors.items():
            data = np.ascontiguousarray(tensor.raw()).data
            each = pool.submit(hashlib.sha256, data)
            for done in [pool.submit(sums.update, data) for sums in (sha256, sha1, named)]:
                done.result()
            tensors[name] = each.result().hexdigest()
    # A version 5 UUID is the beginning of this sum, with six bits set.
    whole = uuid.UUID(bytes=named.digest()[:16], version=5)
    return GgufHash(sha256.hexdigest(), sha1.hexdigest(), str(whole), tensors)
