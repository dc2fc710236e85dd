"""From the shell to the first letter of an answer: `python -m benchmarks.start [MODEL]`.

A whole process each time: interpreter, libraries, opening and packing the weights, the prompt. The file is in the
page cache, and the byte code of the modules on disk as an installed package has it, after the first turn, which does
not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def seconds_to_first_token(model: str, threads: int) -> float:
    """Seconds until `vitral run` has written something to standard output."""
    source = str(Path(__file__).parent.parent / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "vitral", "run", model, "--prompt", "Hi", "--max-tokens", "8"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        took = time.perf_counter() - began
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"vitral run {model} ended with code {process.returncode} and gave no text")
    return took


def turns(model: str, threads: int, n: int) -> list[float]:
    """Seconds of n turns after one that warms up."""
    return [seconds_to_first_token(model, threads) for _ in range(n + 1)][1:]


if __name__ == "__main__":
    found = turns(sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m", len(os.sched_getaffinity(0)), 5)
    print(" ".join(f"{value:.3f}" for value in sorted(found)), "s")
