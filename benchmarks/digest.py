"""How fast a folder is digested, against the disk's streaming read and one core's SHA-256.

    python -m benchmarks.digest --gigabytes 2.4 --files 4

Files are written, dropped from the page cache before each measurement, and removed at the end. The rounds are
interleaved, since a machine is rarely alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

from vitral.provenance.digest import digest_files, model_files

PIECE = 1 << 20


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> None:
    buffer = bytearray(PIECE)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def hash_in_memory(n_bytes: int) -> None:
    digest, data = hashlib.sha256(), os.urandom(PIECE)
    for _ in range(n_bytes // PIECE):
        digest.update(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each = int(asked.gigabytes * 1e9 / asked.files)
        for i in range(asked.files):
            with (folder / f"{i}.safetensors").open("wb") as stream:
                for _ in range(each // PIECE):
                    stream.write(os.urandom(PIECE))
        files = list(model_files(folder).values())
        total = sum(file.stat().st_size for file in files)
        ways = {
            "streaming read": lambda: read(files),
            "one core's SHA-256": lambda: hash_in_memory(total),
            "digest_files": lambda: digest_files(model_files(folder), asked.threads),
        }
        best: dict[str, float] = {}
        for _ in range(asked.rounds):
            for what, run in ways.items():
                forget(files)
                start = time.perf_counter()
                run()
                best[what] = max(best.get(what, 0), total / (time.perf_counter() - start))
        for what, speed in best.items():
            print(f"{what:20} {speed / 1e9:6.2f} GB/s")
        slower = min(best["streaming read"], best["one core's SHA-256"])
        print(f"{best['digest_files'] / slower:.0%} of the slower of the two")


if __name__ == "__main__":
    main()
