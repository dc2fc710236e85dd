"""How fast a folder is digested, against the disk's streaming read and one core's SHA-256.

    python -m benchmarks.digest --gigabytes 10 --files 1 --result

The bar is 0.8 of the slower of the two. Files are written, dropped from the page cache before each measurement, and removed at the end. The rounds are
interleaved, since a machine is rarely alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

from benchmarks import record
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
    parser.add_argument("--result", action="store_true", help="keep the figures in results/digest.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each = int(asked.gigabytes * 1e9 / asked.files)
        for i in range(asked.files):
            with (folder / f"{i}.safetensors").open("wb") as stream:
                noise = os.urandom(PIECE - 8)
                for at in range(each // PIECE):
                    stream.write(at.to_bytes(8, "little") + noise)
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
        share = best["digest_files"] / min(best["streaming read"], best["one core's SHA-256"])
        print(f"{share:.0%} of the slower of the two")
        if asked.result:
            speeds = {what: round(speed / 1e9, 3) for what, speed in best.items()}
            figures = {"bytes": total, "files": asked.files, "rounds": asked.rounds, "gigabytes_per_second": speeds}
            record.write("digest", {"versions": record.versions("vitral"), **figures, "share": round(share, 3)})


if __name__ == "__main__":
    main()
