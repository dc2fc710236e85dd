"""What watching costs: decode with taps off, with the light set, and with each kind of tap.

    python -m benchmarks.lens FOLDER       under five minutes on two cores

On a model of TinyLlama's shape with random weights (1.1B, Q4_0), which is made in FOLDER if it is not
there. Each turn runs every kind between two runs with taps off; what counts is the median over the turns
of the time a token takes, over that of its two neighbours. The light set's figure includes the work at the
end of the answer. Figures go to results/lens.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vitral
from benchmarks import models, record
from vitral.cli.output import progress_bar, table
from vitral.engine.observe import OnValue, Watch
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.language_model import LanguageModel
from vitral.lens.light import LightSet

ALLOWED = 1.10  # most time of a token with the light set, over that without
KINDS = {
    "light set": None,
    "light set, without the work at the end": None,
    "residual stream": Watch(("blocks.*.hook_resid_post",)),
    "z of every head": Watch(("blocks.*.attn.hook_z",)),
    "attention, 8 keys a head": Watch(("blocks.*.attn.hook_pattern",), top=8),
    "attention, whole": Watch(("blocks.*.attn.hook_pattern",)),
    "queries, keys, values": Watch(("blocks.*.attn.hook_[qkv]",)),
    "neurons": Watch(("blocks.*.mlp.hook_post",)),
    "logits": Watch(("unembed.hook_out",)),
    "every tap": Watch(("*",)),
}


def ignore(*_: object) -> None:
    """Who watches and keeps nothing: what is measured is the engine's part."""


def seconds_per_token(
    model: LanguageModel, prompt: int, answer: int, kind: str | None, draw: np.random.Generator
) -> float:
    """Time from the first token of an answer to its end, for each token after the first."""
    ids = [int(token) for token in draw.integers(300, model.spec.vocab_size, prompt)]
    watches: list[Watch] = []
    on_value: OnValue | None = None
    light: LightSet | None = None
    if kind is not None and kind.startswith("light set"):
        light = LightSet(model, since=prompt - 1)
        watches, on_value = light.watches, light.on_value
    elif kind is not None:
        watch = KINDS[kind]
        assert watch is not None
        watches, on_value = [Watch(watch.names, since=prompt - 1, top=watch.top)], ignore
    began = 0.0
    with model.engine.answer(ids, SamplingParams(max_tokens=answer), watch=watches, on_value=on_value) as events:
        for event in events:
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
            if isinstance(event, NewToken):
                began = began or time.perf_counter()
                ids.append(event.token)
    if light is not None and kind == "light set":
        light.finish(ids)
    return (time.perf_counter() - began) / (answer - 1)


def measure(
    model: LanguageModel, prompt: int, answer: int, turns: int, on_run: Callable[[int, int], None]
) -> dict[str, dict[str, float]]:
    """For each kind: milliseconds a token takes, and the median of its ratio to the neighbours without taps."""
    draw = np.random.default_rng(0)
    seconds_per_token(model, prompt, answer, None, draw)  # warms up
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in ["taps off", *KINDS]}
    done = 0
    for _ in range(turns):
        before = seconds_per_token(model, prompt, answer, None, draw)
        for kind in KINDS:
            here = seconds_per_token(model, prompt, answer, kind, draw)
            after = seconds_per_token(model, prompt, answer, None, draw)
            ratios[kind].append(2 * here / (before + after))
            times[kind].append(here)
            times["taps off"].append(before)
            before = after
            done += 1
            on_run(done, turns * len(KINDS))
    found = {"taps off": {"ms_per_token": round(1000 * statistics.median(times["taps off"]), 2), "ratio": 1.0}}
    for kind, some in ratios.items():
        found[kind] = {
            "ms_per_token": round(1000 * statistics.median(times[kind]), 2),
            "ratio": round(statistics.median(some), 4),
            "lowest": round(min(some), 4),
            "highest": round(max(some), 4),
        }
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the model's file is, or is made (0.6 GB)")
    options.add_argument("--prompt", type=int, default=64, help="tokens before the answer")
    options.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    options.add_argument("--turns", type=int, default=3, help="how often each kind runs")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = options.parse_args()
    file = models.make(given.folder, "llama-1.1b", "Q4_0")
    context = given.prompt + given.answer
    with (
        vitral.load(file, threads=given.threads, context_length=context, speculation=False) as model,
        progress_bar("lens") as bar,
    ):
        found = measure(model, given.prompt, given.answer, given.turns, bar)
    how = {"model": "llama-1.1b Q4_0, random", "threads": given.threads, "prompt": given.prompt, "answer": given.answer}
    passed = found["light set"]["ratio"] <= ALLOWED
    path = record.write("lens", {**how, "turns": given.turns, "kinds": found, "allowed": ALLOWED, "passed": passed})
    rows = [[kind, f"{f['ms_per_token']:.1f}", f"{f['ratio']:.3f}"] for kind, f in found.items()]
    columns = ["watched", "ms per token", "over taps off"]
    table("Decode, llama-1.1b Q4_0", columns, rows, numbers=columns[1:])
    print(f"light set at most {ALLOWED}: {'yes' if passed else 'no'}; written to {path}")


if __name__ == "__main__":
    main()
