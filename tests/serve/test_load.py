"""Answers under load are the answers alone, in short; `python -m benchmarks.exact` does it for minutes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.exact import Load, Memory
from benchmarks.over_http import Server
from benchmarks.overload import missed
from tests.serve.conftest import CHAT
from tests.serve.live import live, metric, wait_until


def test_every_answer_under_load_is_the_one_it_is_alone(tmp_path: Path, smollm2: Path) -> None:
    with live(tmp_path, CHAT, "--context", "1024") as server:
        load = Load(Server.at(server.url, server.process.pid), CHAT, tmp_path, longest=150, turns=1)

        async def run() -> list[list[str]]:
            await load.prepare()
            await load.run(seconds=0, clients=20)
            found = [await load.differences(), await load.afterwards()]
            load.alone = dict.fromkeys(load.alone, load.alone[0, None])  # now all but those of the first are others
            return [*found, await load.differences()]

        different, afterwards, tampered = asyncio.run(run())
        assert (different, afterwards) == ([], [])
        assert len(load.made) >= 10 and len({load.cases[i].kind for i, _ in load.made}) >= 7
        assert len(tampered) >= 5
        wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 0)


def test_memory_is_steady_or_grows() -> None:
    flat = [(float(t), 100_000_000 + 1_000_000 * (t < 20), 900_000_000) for t in range(100)]
    assert Memory(flat).judged(100, 500)["steady"]
    leaky = [(t, server, worker + 200_000 * int(t)) for t, server, worker in flat]
    judged = Memory(leaky).judged(100, 500)
    assert not judged["steady"]
    assert round(judged["worker"]["growth_mb"]) == 10 and round(judged["worker"]["slope_mb_per_min"]) == 12
    assert judged["smallest_leak_seen_bytes_per_answer"] == 32_000


def test_what_overload_may_not_do_is_named() -> None:
    calm = {"median": 0.5, "p99": 0.8, "most": 0.9}
    good = {
        "capacity_latency_s": calm,
        "accepted_latency_s": {"median": 0.6, "p99": 1.1, "most": 4.0},
        "refused_ms": {"median": 4.0, "p99": 90.0, "most": 150.0},
        "capacity_per_s": 30.0,
        "capacity_afterwards_per_s": 28.0,
        "statuses": {"200": 100, "429": 300},
    }
    assert missed(good) == []
    bad = {
        "accepted_latency_s": {"median": 0.6, "p99": 1.3, "most": 4.0},
        "refused_ms": {"median": 4.0, "p99": 101.0, "most": 150.0},
        "capacity_afterwards_per_s": 26.0,
        "statuses": {"200": 100, "429": 300, "503": 1},
    }
    assert [len(missed(good | {key: value})) for key, value in bad.items()] == [1, 1, 1, 1]
