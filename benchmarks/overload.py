"""Overload: `python -m benchmarks.overload [MODEL] [--seconds 60]`; figures in results/overload.json.

The server takes on 16 answers at once. Capacity is what it answers a second while 16 clients ask without a pause; then
requests arrive at four times that rate, whatever becomes of those before (open loop, exponential gaps), for
`--seconds`; then capacity is measured again. Asked for:

- accepted requests keep their latency: median and 99th percentile are at most 1.5 times those at capacity;
- the others get 429 within 100 ms: the 99th percentile, from opening the connection to the last byte; the share that
  took longer is said. The client shares the processors with server and engine, so the longest time for which its own
  loop stood still is said too: what is refused can seem slower by that;
- the server is as fast afterwards: at least 0.9 times the answers a second.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.over_http import Server, run, sent

AT_ONCE, TIMES, TOKENS = 16, 4, 16
LATENCY_RATIO, REFUSED_MS, AFTERWARDS = 1.5, 100.0, 0.9


class Watch:
    """How long this process's own loop stood still, at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            self.longest_s = max(self.longest_s, time.perf_counter() - began - 0.005)


async def timed(server: Server, model: str, number: int) -> tuple[int, float]:
    """Status of a short chat, and its seconds."""
    content = f"Tell me something about the number {number}."
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "seed": number}
    began = time.perf_counter()
    reply = await sent(server, "/v1/chat/completions", asked)
    if reply.status == 429:
        assert "retry-after: " in reply.head, reply
    return reply.status, time.perf_counter() - began


async def capacity(server: Server, model: str, seconds: float) -> tuple[float, list[float]]:
    """Answers a second of as many clients as there is room for, and the seconds of each."""
    began, took, numbers = time.monotonic(), [], iter(range(1 << 30))

    async def client() -> None:
        while time.monotonic() < began + seconds:
            status, s = await timed(server, model, next(numbers))
            assert status == 200, status
            took.append(s)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return len(took) / (time.monotonic() - began), took


async def flood(server: Server, model: str, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Requests at `rate` a second, whether or not those before are done: status and seconds of each."""
    gaps, asked = random.Random(0), []
    began = due = time.monotonic()
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(asyncio.create_task(timed(server, model, len(asked))))
        due += gaps.expovariate(rate)
    return list(await asyncio.gather(*asked))


def spread(values: list[float], unit: float) -> dict[str, float]:
    """Median, 99th percentile and largest, in `unit` seconds."""
    ordered = sorted(values)
    found = {"median": statistics.median(ordered), "p99": ordered[int(0.99 * len(ordered))], "most": ordered[-1]}
    return {name: round(value / unit, 4) for name, value in found.items()}


async def measured(server: Server, model: str, seconds: float) -> dict[str, Any]:
    """Capacity, overload, capacity again; plain figures, and what was missed."""
    await capacity(server, model, 1)
    before, calm = await capacity(server, model, seconds / 3)
    watch = Watch()
    watching = asyncio.create_task(watch.run())
    outcome = await flood(server, model, TIMES * before, seconds)
    watching.cancel()
    after, _ = await capacity(server, model, seconds / 3)
    accepted = [s for status, s in outcome if status == 200]
    refused = [s for status, s in outcome if status == 429]
    found: dict[str, Any] = {
        "at_once": AT_ONCE,
        "seconds": seconds,
        "capacity_per_s": before,
        "capacity_latency_s": spread(calm, 1),
        "offered_per_s": len(outcome) / seconds,
        "statuses": dict(sorted(Counter(str(status) for status, _ in outcome).items())),
        "accepted_per_s": len(accepted) / seconds,
        "accepted_latency_s": spread(accepted, 1),
        "refused_ms": spread(refused, 1e-3),
        "refused_slower_than_100_ms": sum(s > REFUSED_MS / 1000 for s in refused) / len(refused),
        "client_stood_still_ms": 1000 * watch.longest_s,
        "capacity_afterwards_per_s": after,
    }
    return found | {"missed": missed(found)}


def missed(found: dict[str, Any]) -> list[str]:
    """What was asked for and is not so."""
    calm, under = found["capacity_latency_s"], found["accepted_latency_s"]
    wrong = [
        f"{name} of the accepted is {under[name]:.3f} s; at capacity {calm[name]:.3f} s"
        for name in ("median", "p99")
        if under[name] > LATENCY_RATIO * calm[name]
    ]
    if found["refused_ms"]["p99"] > REFUSED_MS:
        wrong.append(f"99 % are refused within {found['refused_ms']['p99']:.0f} ms; asked for: {REFUSED_MS:g} ms")
    if found["capacity_afterwards_per_s"] < AFTERWARDS * found["capacity_per_s"]:
        wrong.append(
            f"afterwards {found['capacity_afterwards_per_s']:.2f} a second, {found['capacity_per_s']:.2f} before"
        )
    if set(found["statuses"]) - {"200", "429"}:
        wrong.append(f"statuses other than 200 and 429: {found['statuses']}")
    return wrong


async def asked_for(server: Server, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return await measured(server, given.model, given.seconds)


if __name__ == "__main__":
    extra = ("--queue-requests", str(AT_ONCE))
    found = run("overload", str(__doc__), asked_for, ("uvicorn", "starlette"), {"seconds": 60.0}, *extra)
    sys.exit(1 if found["missed"] else 0)
