"""Ours beside llama.cpp, OpenVINO GenAI and transformers, turn by turn, on the same files and threads.

    python -m benchmarks.peers FOLDER      once: the peers' environments
    python -m benchmarks.speed FOLDER      under a quarter of an hour on two cores

Each measure runs ours, a peer, ours, the next peer ... `--turns` times; what counts is the median, and
for the comparison the median of the ratios of neighbours. Decoding stands between two streaming reads
of the bytes that a token needs. A peer that is missing or fails is named in the result, never left out
in silence. Figures go to results/speed.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import models, peers, record, sides, start
from benchmarks.sides import Failed, Side
from vitral.cli.output import progress_bar, table
from vitral.engine.measure import StreamingRead
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve

SMOL = "smollm2:135m"
START_S = 0.4  # most seconds from the shell to the first token
LONG_PROMPT = 0.6  # least rate of a prompt of 4096 tokens, of that of 512
CONTEXT = 4224  # tokens, enough for the longest prompt


@dataclass(frozen=True)
class Measure:
    """One row of the table: what runs, on which model, against whom, and the least that is wanted."""

    model: str  # SMOL, or shape and type of `models.FILES`
    what: str
    how: Mapping[str, int]
    bars: Mapping[str, float] = field(default_factory=dict)  # peer -> least ratio of ours to it
    share: float | None = None  # least part of the streaming read, for decode
    rate: float | None = None  # least tokens per second

    @property
    def name(self) -> str:
        sizes = ", ".join(f"{value} {key}" for key, value in self.how.items())
        return f"{self.what} ({sizes}), {self.model}"


_PREFILL, _LONG, _DECODE = {"prompt": 512}, {"prompt": 4096}, {"answer": 64}
_TOGETHER = {"sequences": 16, "answer": 64}
MEASURES = (
    Measure(SMOL, "decode", _DECODE, {"llama.cpp": 2.2, "openvino": 2.2}, share=0.6),
    Measure(SMOL, "prefill", _PREFILL, {"llama.cpp": 1.5, "openvino": 1.5, "transformers": 1.5}),
    Measure(SMOL, "prefill", _LONG),
    Measure(SMOL, "together", _TOGETHER, {"llama.cpp": 5.0}, rate=2000),
    Measure("llama-1.1b Q4_0", "decode", _DECODE, {"llama.cpp": 1.4}, share=0.85),
    Measure("llama-1.1b Q4_0", "prefill", _PREFILL, {"llama.cpp": 4.0, "transformers": 1.2}),
    Measure("llama-1.1b Q4_K_M", "decode", _DECODE, {"llama.cpp": 1.4}, share=0.85),
    Measure("llama-1.1b Q8_0", "decode", _DECODE, {"llama.cpp": 1.4}, share=0.85),
    Measure("mixtral Q4_0", "decode", _DECODE, {"llama.cpp": 1.6}),
    Measure("mixtral Q4_0", "prefill", _PREFILL, {"llama.cpp": 5.0, "transformers": 1.5}),
    Measure("mixtral Q4_K_M", "decode", _DECODE, {"llama.cpp": 1.6}),
)


class Sides:
    """The engines for one model, each opened when first needed; one that cannot be is remembered with its reason."""

    def __init__(self, model: str, folder: Path, threads: int) -> None:
        self.file = Path(resolve(SMOL)) if model == SMOL else models.make(folder / "models", *model.split())
        self._spec = open_checkpoint(self.file).spec
        self._folder, self._threads = folder, threads
        self._open: dict[str, Side | Failed] = {}

    def side(self, name: str) -> Side:
        """The engine of this name. Raises Failed, the same each time."""
        if name not in self._open:
            try:
                self._open[name] = self._makers()[name]()
            except Failed as failed:
                self._open[name] = failed
        found = self._open[name]
        if isinstance(found, Failed):
            raise found
        return found

    def close(self) -> None:
        for found in self._open.values():
            if not isinstance(found, Failed):
                found.close()

    def _makers(self) -> dict[str, Callable[[], Side]]:
        def there(path: Path) -> Path:
            if not path.exists():
                raise Failed(f"not installed: python -m benchmarks.peers {self._folder}")
            return path

        tools = self._folder / "llama.cpp-bench" / "build" / "bin"
        threads, folder = self._threads, self._folder
        return {
            "ours": lambda: sides.ours(str(self.file), threads, min(CONTEXT, self._spec.max_context)),
            "llama.cpp": lambda: sides.LlamaCpp(there(tools / peers.TOOLS[0]).parent, self.file, threads),
            "openvino": lambda: sides.openvino(there(folder / "openvino" / "bin" / "python"), self.file, threads),
            "transformers": lambda: sides.transformers(
                there(folder / "transformers" / "bin" / "python"), self._spec, threads, folder / "shapes"
            ),
        }


def measured(measure: Measure, engines: Sides, turns: int, threads: int) -> dict[str, Any]:
    """All turns of one row."""
    mine = engines.side("ours")
    probe = StreamingRead(int(mine.about["token_bytes"]), threads)
    rates: dict[str, list[float]] = {"ours": []}
    ratios: dict[str, list[float]] = {}
    reads: list[float] = []
    failed: dict[str, str] = {}
    mine.run(measure.what, **measure.how)  # warms up
    for _ in range(turns):
        for peer in measure.bars or [None]:
            before = probe()
            rate = mine.run(measure.what, **measure.how)
            reads.append((before + probe()) / 2)
            rates["ours"].append(rate)
            if peer is None or peer in failed:
                continue
            try:
                theirs = engines.side(peer).run(measure.what, **measure.how)
            except Failed as error:
                failed[peer] = str(error)
                continue
            rates.setdefault(peer, []).append(theirs)
            ratios.setdefault(peer, []).append(rate / theirs)
    found: dict[str, Any] = {
        "tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "streaming_read_gb_s": statistics.median(reads) / 1e9,
        "turns": rates,
        "failed": failed,
        "about": {name: dict(engines.side(name).about) for name in ratios},
    }
    if measure.what == "decode":
        shares = [r * int(mine.about["token_bytes"]) / read for r, read in zip(rates["ours"], reads, strict=True)]
        found["share_of_streaming_read"] = statistics.median(shares)
    found["missed"] = missed(measure, found)
    return found


def missed(measure: Measure, found: Mapping[str, Any]) -> list[str]:
    """The bars that this row does not reach."""
    wanted = [
        (f"{bar:g} x {peer}", found["ratio"][peer], bar) for peer, bar in measure.bars.items() if peer in found["ratio"]
    ]
    if measure.share is not None:
        wanted.append((f"{measure.share:.0%} of the streaming read", found["share_of_streaming_read"], measure.share))
    if measure.rate is not None:
        wanted.append((f"{measure.rate:g} tokens/s", found["tokens_per_s"]["ours"], measure.rate))
    return [f"{name}: {value:.3g}" for name, value, bar in wanted if value < bar]


def compare_prompts(results: Mapping[str, Any]) -> None:
    """Set the rate of a long prompt beside that of a short one."""
    long, short = (results.get(Measure(SMOL, "prefill", how).name) for how in (_LONG, _PREFILL))
    if long is not None and short is not None:
        long["of_the_short_rate"] = long["tokens_per_s"]["ours"] / short["tokens_per_s"]["ours"]
        if long["of_the_short_rate"] < LONG_PROMPT:
            long["missed"].append(f"{LONG_PROMPT:.0%} of the rate of 512 tokens: {long['of_the_short_rate']:.3g}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where peers and models are, or shall be")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--only", default="", help="rows whose name has this in it")
    options.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the result")
    given = options.parse_args()
    folder = given.folder.resolve()
    rows = [measure for measure in MEASURES if given.only in measure.name]
    if not rows:
        options.error(f"no row has {given.only!r} in its name; rows: {'; '.join(m.name for m in MEASURES)}")
    results: dict[str, Any] = {}
    engines: Sides | None = None
    model, began = "", time.perf_counter()
    with progress_bar("measures") as bar:
        for done, measure in enumerate(rows):
            bar(done, len(rows))
            if measure.model != model or engines is None:
                if engines is not None:
                    engines.close()
                model, engines = measure.model, Sides(measure.model, folder, given.threads)
            print(f"measuring {measure.name}: ours beside {', '.join(measure.bars) or 'nobody'}", flush=True)
            results[measure.name] = measured(measure, engines, given.turns, given.threads)
        bar(len(rows), len(rows))
    if engines is not None:
        engines.close()
    compare_prompts(results)
    print(f"measuring from the shell to the first token, {SMOL}", flush=True)
    started = start.turns(SMOL, given.threads, given.turns)
    show(results)
    print(f"shell to first token: {statistics.median(started):.3f} s; wanted: at most {START_S} s")
    figures = {
        "versions": record.versions("vitral", "numpy"),
        "threads": given.threads,
        "seconds": round(time.perf_counter() - began),
        "shell_to_first_token_s": {"median": statistics.median(started), "turns": started, "wanted": START_S},
        "measures": results,
    }
    print(f"written to {record.write('speed', figures, given.out)}")


def show(results: Mapping[str, Any]) -> None:
    """The table of medians."""
    names = list(dict.fromkeys(name for found in results.values() for name in found["tokens_per_s"]))
    rows = []
    for name, found in results.items():
        rates = [f"{found['tokens_per_s'][side]:.4g}" if side in found["tokens_per_s"] else "" for side in names]
        share = found.get("share_of_streaming_read")
        rows.append([name, *rates, f"{share:.0%}" if share else "", "; ".join(found["missed"])])
    table("Tokens per second, medians", ["", *names, "of the read", "missed"], rows, numbers=[*names, "of the read"])
    for name, found in results.items():
        for peer, why in found["failed"].items():
            print(f"{name}: {peer} failed: {why}")


if __name__ == "__main__":
    main()
