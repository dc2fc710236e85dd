"""This machine in a minute: `make bench`, or `python -m benchmarks.short [MODEL] [--json]`.

Decoding reads all weights for each token, so memory is its limit. What memory gives is measured in the
same seconds, because on a shared machine it is another number a minute later. Every figure is the
median of three, with the range beside it; nothing is warmed up but by the first, uncounted turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import vitral
from vitral import native
from vitral.cli.output import size_text, table
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.settings import read_settings

_TURNS = 3
_READ_BYTES = 256 << 20


@dataclass(frozen=True)
class Figure:
    """A measured value: the median of several turns, the smallest and the largest."""

    name: str
    unit: str
    median: float
    least: float
    most: float


def _figure(name: str, unit: str, values: list[float]) -> Figure:
    return Figure(name, unit, statistics.median(values), min(values), max(values))


def _measured(turn: Callable[[int], float]) -> list[float]:
    """Values of the turns after the first, which only warms up."""
    return [turn(i) for i in range(_TURNS + 1)][1:]


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def streaming_read(threads: int) -> float:
    """GB/s at which so many threads read memory that no cache holds."""
    parts = np.array_split(np.ones(_READ_BYTES // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(np.sum, parts))
        return _READ_BYTES / (time.perf_counter() - began) / 1e9


def measure(name: str, threads: int, prompt_tokens: int = 512, answer_tokens: int = 64) -> list[Figure]:
    """All figures of a model; prompts are random ids."""
    path = resolve(name)
    weight_bytes = open_checkpoint(path).weights.n_bytes()
    before = resident_bytes()
    began = time.perf_counter()
    model = vitral.load(path, threads=threads, context_length=prompt_tokens + answer_tokens)
    load_s = time.perf_counter() - began
    draw = np.random.default_rng(0)

    def ids(n: int) -> list[int]:
        """Other tokens each time, so that no cache knows them."""
        return draw.integers(0, model.spec.vocab_size, n).tolist()

    def first_token(n: int) -> float:
        seconds = model.generate(ids=ids(n), max_tokens=1, ignore_eos=True).timings.first_token_s
        assert seconds is not None
        return seconds

    reads: list[float] = []
    decodes: list[float] = []

    def decode(_: int) -> float:
        reads.append(streaming_read(threads))
        timings = model.generate(ids=ids(16), max_tokens=answer_tokens, ignore_eos=True).timings
        assert timings.first_token_s is not None
        decodes.append((answer_tokens - 1) / (timings.total_s - timings.first_token_s))
        return decodes[-1]

    with model:
        prefill = [prompt_tokens / seconds for seconds in _measured(lambda _: first_token(prompt_tokens))]
        short = _measured(lambda _: first_token(16))
        decoded = _measured(decode)
        resident = resident_bytes()
    shares = [100 * rate * weight_bytes / 1e9 / read for rate, read in zip(decodes, reads, strict=True)][1:]
    return [
        _figure("load and pack", "s", [load_s]),
        _figure(f"prefill of {prompt_tokens} tokens", "tokens/s", prefill),
        _figure("first token after 16", "ms", [1000 * seconds for seconds in short]),
        _figure(f"decode, {answer_tokens} tokens", "tokens/s", decoded),
        _figure("streaming read, same moment", "GB/s", reads[1:]),
        _figure("weights read by decode, of that", "%", shares),
        _figure("resident memory over the file", "x", [(resident - before) / weight_bytes]),
        _figure("resident memory", "MB", [resident / 1e6]),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure this machine in a minute.")
    parser.add_argument("model", nargs="?", default="smollm2:135m", help="a path or a name")
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead")
    asked = parser.parse_args()
    settings = read_settings()
    threads = settings.threads or len(os.sched_getaffinity(0))
    isa = native.choose(settings.isa)
    figures = measure(asked.model, threads)
    if asked.json:
        print(json.dumps({"model": asked.model, "isa": isa, "threads": threads, "load_1min": os.getloadavg()[0],
                          "figures": [asdict(figure) for figure in figures]}, indent=2))  # fmt: skip
        return
    size = size_text(open_checkpoint(resolve(asked.model)).weights.n_bytes())
    table(
        f"{asked.model} ({size}), {isa}, {threads} threads; load of the machine {os.getloadavg()[0]:.1f}",
        ["", "median", "least", "most", "unit"],
        [(f.name, f"{f.median:.4g}", f"{f.least:.4g}", f"{f.most:.4g}", f.unit) for f in figures],
        numbers=["median", "least", "most"],
    )


if __name__ == "__main__":
    main()
