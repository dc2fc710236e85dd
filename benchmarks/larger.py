"""A mixture larger than memory: tokens per second, and the most memory that the process ever had.

    python -m benchmarks.larger FOLDER [--share 1.0]

Writes a file of Mixtral 8x7B's shape in Q4_0 (26 GB at share 1), whose routers prefer some experts, drops it from the
system's cache, answers in a process of its own under a memory budget, and deletes it. `--share` makes layers,
vocabulary and budget smaller in proportion, for a machine with less memory or time. Figures go to results/larger.json, or
larger_SHARE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import MIXTRAL, write_model
from vitral.model.spec import ModelSpec, MoeSpec

SHAPE = replace(
    MIXTRAL, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14336, moe=MoeSpec(8, 2)
)
BUDGET = 19_500_000_000  # bytes for weights and cache, of the 20 GB that the process may have
MOST_RESIDENT = 20_000_000_000
LEAST_RATE = 0.4  # tokens per second
CONTEXT = 512


def shape(share: float) -> ModelSpec:
    """The shape with a share of its layers."""
    return replace(SHAPE, n_layers=max(2, round(SHAPE.n_layers * share)))


def answer(path: Path, budget: int, tokens: int, warm: int, threads: int) -> dict[str, Any]:
    """Load, read a prompt of 16 tokens, then decode; the first `warm` tokens fill the memory and count apart."""
    import vitral
    from vitral.engine.native import NativeForward
    from vitral.engine.request import Finished, NewToken, SamplingParams

    began = time.perf_counter()
    with vitral.load(path, threads=threads, context_length=CONTEXT, memory_bytes=budget, speculation=False) as model:
        loaded = time.perf_counter()
        forward = model.engine.forward
        assert isinstance(forward, NativeForward)
        draw = random.Random(1)
        prompt = [draw.randrange(model.spec.vocab_size) for _ in range(16)]
        # Sampled hot: greedy answers of random weights repeat one token, and so one route.
        params = SamplingParams(max_tokens=warm + tokens, temperature=2.0, seed=1)
        times, counts = [], [forward.model.expert_counts]
        with model.engine.answer(prompt, params) as events:
            for event in events:
                if isinstance(event, Finished) and event.error is not None:
                    raise event.error
                if isinstance(event, NewToken):
                    times.append(time.perf_counter())
                    counts.append(forward.model.expert_counts)
        seconds = times[-1] - times[warm - 1]
        first, last = counts[warm], counts[-1]
        chosen = last.hits + last.misses - first.hits - first.misses
        return {
            "load_s": loaded - began,
            "first_token_s": times[0] - loaded,
            "warming": {"tokens": warm, "tokens_per_s": (warm - 1) / (times[warm - 1] - times[0])},
            "tokens": len(times) - warm,
            "tokens_per_s": (len(times) - warm) / seconds,
            "experts_in_memory_when_chosen": (last.hits - first.hits) / chosen,
            "read_bytes_per_s": (last.bytes_read - first.bytes_read) / seconds,
            "experts_held_bytes": last.held_bytes,
            "peak_resident_bytes": _peak(),
        }


def _peak() -> int:
    """The most memory that this process ever had in RAM, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def read_rate(path: Path, n_bytes: int = 1 << 31) -> float:
    """Bytes per second of a plain read from the start of the file, not from the system's cache."""
    drop(path)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        done = sum(len(file.read(1 << 22)) for _ in range(min(n_bytes, path.stat().st_size) >> 22))
    rate = done / (time.perf_counter() - began)
    drop(path)
    return rate


def drop(path: Path) -> None:
    """Take a file out of the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the file goes for a while")
    options.add_argument("--share", type=float, default=1.0, help="of the layers and of the budget")
    options.add_argument("--budget", type=int, help="bytes, instead of that share of 19.5 GB")
    options.add_argument("--skew", type=float, default=1.0, help="Zipf's exponent of the routers; 0 chooses all alike")
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--warm", type=int, default=32, help="tokens before those that count")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the result")
    options.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    budget = given.budget or int(BUDGET * given.share)
    if given.worker is not None:
        print(json.dumps(answer(given.worker, budget, given.tokens, given.warm, given.threads)))
        return
    path = given.folder / "larger.gguf"
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        write_model(path, shape(given.share), "Q4_0", given.skew)
        size, rate = path.stat().st_size, read_rate(path)
        print(f"{size / 1e9:.1f} GB written; a plain read gives {rate / 1e6:.0f} MB/s", flush=True)
        again = [sys.executable, "-m", "benchmarks.larger", *sys.argv[1:], "--worker", str(path)]
        done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the answer ended with code {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
    finally:
        path.unlink(missing_ok=True)
    wanted = {
        "tokens_per_s": LEAST_RATE,
        "peak_resident_bytes": int(MOST_RESIDENT * given.share),
    }
    figures = {
        "versions": record.versions("vitral", "numpy"),
        "threads": given.threads,
        "shape": "Mixtral 8x7B" if given.share == 1 else f"{given.share:.0%} of the layers of Mixtral 8x7B",
        "type": "Q4_0",
        "skew": given.skew,
        "file_bytes": size,
        "budget_bytes": budget,
        "plain_read_bytes_per_s": rate,
        **found,
        "wanted": wanted,
    }
    print(
        f"{found['tokens_per_s']:.2f} tokens/s (wanted {wanted['tokens_per_s']}), at most "
        f"{found['peak_resident_bytes'] / 1e9:.1f} GB resident (allowed {wanted['peak_resident_bytes'] / 1e9:.1f}), "
        f"{found['experts_in_memory_when_chosen']:.0%} of the chosen experts were in memory"
    )
    name = "larger" if given.share == 1 else f"larger_{given.share}"
    print(f"written to {record.write(name, figures, given.out)}")


if __name__ == "__main__":
    main()
