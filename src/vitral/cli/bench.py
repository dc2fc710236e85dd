"""`vitral bench`: how fast a model is on this machine, and how near to what memory allows."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from vitral.cli.output import AsJson, console, print_json, progress_bar, table

__all__ = ["bench"]

_BAR = 40  # characters


def bench(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that prefill reads.")] = 512,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    together: Annotated[int, typer.Option(min=2, max=64, help="Sequences that decode together.")] = 16,
    turns: Annotated[int, typer.Option(min=1, max=99, help="How often; the median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model is on this machine.

    Prefill, decode, several sequences together, time to first token, memory; and which share decoding
    uses of the streaming read that memory gives in the same seconds. Random prompts, medians.
    """
    import vitral
    from vitral import native
    from vitral.engine.measure import Figure, Plan, bytes_per_token, measure
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.hub import admitted
    from vitral.settings import read_settings

    plan = Plan(prompt, answer, together, turns)
    settings = read_settings()
    threads = threads or settings.threads or len(os.sched_getaffinity(0))
    path = admitted(model)
    weights = open_checkpoint(path).weights
    token_bytes, file_bytes = bytes_per_token(weights), weights.n_bytes()
    began = time.perf_counter()
    with (
        vitral.load(path, threads=threads, context_length=plan.context, speculation=False) as loaded,
        progress_bar("turns") as bar,
    ):
        load = Figure("load and pack", "s", (time.perf_counter() - began,))
        figures = measure(
            loaded.engine,
            plan,
            vocab_size=loaded.spec.vocab_size,
            token_bytes=token_bytes,
            threads=threads,
            on_turn=bar,
        )
    figures.append(load)
    about: dict[str, Any] = {
        "model": model,
        "weight_bytes": file_bytes,
        "bytes_per_token": token_bytes,
        "isa": native.choose(settings.isa),
        "threads": threads,
        "load_1min": os.getloadavg()[0],
    }
    if as_json:
        print_json({**about, "plan": asdict(plan), "figures": [{**asdict(f), "median": f.median} for f in figures]})
        return
    table(
        f"{model}, {about['isa']}, {threads} threads; load of the machine {about['load_1min']:.1f}",
        ["", "median", "least", "most", "unit"],
        [(f.name, *(f"{v:.4g}" for v in (f.median, min(f.values), max(f.values))), f.unit) for f in figures],
        numbers=["median", "least", "most"],
    )
    _plot([(f.name, f.median) for f in figures if f.unit == "tokens/s"], "tokens/s")
    _plot([(f.name, f.median) for f in figures if f.unit == "%"], "%", most=100)


def _plot(rows: list[tuple[str, float]], unit: str, most: float | None = None) -> None:
    """A bar for each value, the largest (or `most`) as wide as the plot."""
    most = most or max(value for _, value in rows)
    for name, value in rows:
        full = min(_BAR, round(_BAR * value / most))
        line = Text(f"{name:34}")
        line.append("█" * full, style="cyan").append("░" * (_BAR - full), style="dim")
        console.print(line.append(f" {value:.4g} {unit}"), soft_wrap=True)
