"""Digests of files and of tensors.

A file's digest says that the bytes are the same; the digest of the weights (`formats.weights`) says that the
model is: whoever edits a template or a licence tag changes the first and not the second. `gguf_hash` gives
the sums of llama.cpp's example of that name, tensor by tensor and of the whole.

SHA-256 is one chain, so hashing a file takes one core; files are digested side by side, the largest first.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from vitral.errors import FormatError, ModelNotFound
from vitral.formats.gguf import GgufFile

__all__ = ["DigestCache", "FileDigest", "GgufHash", "digest_files", "gguf_differences", "gguf_hash", "model_files"]
__all__ += ["sha256_of"]

_PIECE = 1 << 20  # bytes; half of a core's usual second-level cache, so that the next copy finds room there
_PIECES_AHEAD = 16  # of each file that is read
# The name space under which gguf-hash makes version 5 UUIDs of models (llama.cpp, examples/gguf-hash).
_NAMESPACE = uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256 in hexadecimal, and the size in bytes."""

    sha256: str
    n_bytes: int


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; `progress` is told of each piece's bytes.

    A thread of its own reads ahead, up to sixteen pieces, so that neither waits where the other is held up for a
    moment: a file takes the longer of reading and hashing, not both.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        with closing(_ahead(file)) as pieces:
            for piece in pieces:
                digest.update(piece)
                if progress is not None:
                    progress(len(piece))
    return digest.hexdigest()


def _ahead(file: FileIO) -> Generator[memoryview]:
    """The pieces of a file, each good until the next is asked for; raises what reading raises."""
    free: SimpleQueue[memoryview | None] = SimpleQueue()
    full: SimpleQueue[tuple[memoryview, int] | OSError | ValueError] = SimpleQueue()

    def read() -> None:
        try:
            while (buffer := free.get()) is not None:
                n = file.readinto(buffer)
                full.put((buffer, n))
                if not n:
                    return
        except (OSError, ValueError) as error:
            full.put(error)

    for _ in range(min(_PIECES_AHEAD, os.fstat(file.fileno()).st_size // _PIECE + 2)):
        free.put(memoryview(bytearray(_PIECE)))
    reader = threading.Thread(target=read)
    reader.start()
    try:
        while True:
            got = full.get()
            if isinstance(got, OSError | ValueError):
                raise got
            buffer, n = got
            if not n:
                return
            yield buffer[:n]
            free.put(buffer)
    finally:
        free.put(None)
        reader.join()


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

    Takes sixteen megabytes of memory for each thread. Raises FormatError for a file that cannot be read.
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
    """Sums over the bytes of tensors in the order of the file: of the whole, and of each, by kind of sum.

    `whole` has sha1, sha256, uuid, and xxh64 where the library xxhash is installed (extra `sign`); each tensor all
    but uuid.
    """

    whole: dict[str, str]
    tensors: dict[str, dict[str, str]]

    def lines(self, name: str) -> list[str]:
        """What `gguf-hash --all --uuid` prints for a file of this name."""
        each = [
            (kind, sums[kind], f"{name}:{tensor}")
            for tensor, sums in self.tensors.items()
            for kind in _ORDER
            if kind in sums
        ]
        whole = [(kind, self.whole[kind], name) for kind in _ORDER if kind in self.whole]
        return [f"{kind:<8}  {digest}  {what}" for kind, digest, what in each + whole]


_ORDER = ("xxh64", "sha1", "sha256", "uuid")


def gguf_hash(path: Path) -> GgufHash:
    """The sums that `gguf-hash` gives for a file; of a split model, over all parts in order."""
    kinds: dict[str, Callable[[], Any]] = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}
    with suppress(ImportError):
        from xxhash import xxh64

        kinds["xxh64"] = xxh64
    whole = {kind: new() for kind, new in kinds.items()} | {"uuid": hashlib.sha1(_NAMESPACE.bytes)}
    tensors: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(4) as pool:
        for name, tensor in GgufFile.open(path).tensors.items():
            data = np.ascontiguousarray(tensor.raw()).data
            each = {kind: new() for kind, new in kinds.items()}
            for done in [pool.submit(sums.update, data) for sums in (*whole.values(), *each.values())]:
                done.result()
            tensors[name] = {kind: sums.hexdigest() for kind, sums in each.items()}
    # A version 5 UUID is the beginning of this sum, with six bits set.
    named = uuid.UUID(bytes=whole.pop("uuid").digest()[:16], version=5)
    return GgufHash({kind: sums.hexdigest() for kind, sums in whole.items()} | {"uuid": str(named)}, tensors)


def gguf_differences(path: Path, manifest: Path) -> list[str]:
    """What in a model is not what a manifest of `gguf-hash` says; FormatError for a manifest without a sum of these.

    Names of files do not count: the manifest may have been made elsewhere.
    """
    ours = {(kind, _of_tensor(what)): digest for kind, digest, what in map(str.split, gguf_hash(path).lines("model"))}
    try:
        lines = [line.split(None, 2) for line in manifest.read_text("utf-8").splitlines() if line.strip()]
        theirs = {(kind, _of_tensor(what.strip())): digest for kind, digest, what in lines}
    except (OSError, ValueError) as error:
        raise FormatError(f"{manifest} is no manifest of gguf-hash: {error}") from None
    if not ours.keys() & theirs.keys():
        raise FormatError(
            f"{manifest} has no sum that can be compared; made by gguf-hash with --sha256, --sha1 or --all?"
        )
    named = [(kind, name) for kind, name in theirs if kind in {kind for kind, _ in ours}]
    found = [f"{name or 'the whole'}: {kind} differs" for kind, name in named if ours.get((kind, name), theirs[kind, name]) != theirs[kind, name]]  # fmt: skip
    listed, here = {name for _, name in theirs}, {name for _, name in ours}
    return (
        found
        + [f"{name} is missing" for name in sorted(listed - here)]
        + [f"{name} was added" for name in sorted(here - listed)]
    )


def _of_tensor(what: str) -> str:
    return what.partition(":")[2]


class DigestCache:
    """Digests that are remembered while a file's path, size and times stay as they are, of the last files asked for.

    The time of change is the file system's own and can't be set back, unlike that of modification; both count.
    """

    def __init__(self, most: int = 4096) -> None:
        """most: files that are remembered."""
        self._most = most
        self._known: OrderedDict[tuple[str, int, int, int, int], FileDigest] = OrderedDict()
        self._lock = threading.Lock()

    def digests(self, files: Mapping[str, Path]) -> tuple[dict[str, FileDigest], int]:
        """The digest of each file, one after the other, and how many bytes were read for them.

        Raises FormatError for a file that cannot be read, or that changes while it is.
        """
        found: dict[str, FileDigest] = {}
        read = 0
        for name, path in files.items():
            try:
                key = _state(path)
                with self._lock:
                    known = self._known.get(key)
                if known is None:
                    known, read = FileDigest(sha256_of(path), key[1]), read + key[1]
                    if _state(path) != key:
                        raise FormatError(f"{path} was changed while it was read; try again")
            except OSError as error:
                raise FormatError(f"{path} cannot be read: {error.strerror}") from None
            found[name] = known
            with self._lock:
                self._known[key] = known
                self._known.move_to_end(key)
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        return found, read


def _state(path: Path) -> tuple[str, int, int, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
