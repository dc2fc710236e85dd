"""What one key's prompts left in the prefix cache, another key neither finds nor can time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.serve.conftest import CHAT
from tests.serve.live import live
from vitral.engine.request import SamplingParams
from vitral.serve.access import KeyRing
from vitral.serve.engines import Ask, Digest, Ended, Token
from vitral.serve.records import params_to
from vitral.serve.replay import replay_on

ROUNDS = 5


def test_what_another_key_asked_cannot_be_timed(tmp_path: Path, smollm2: Path) -> None:
    """First tokens of prompts that nobody asked, that another key has just asked, and that the same key has asked.

    Were the cache shared, the second would be as fast as the third, a tenth of the first.
    """
    ring = KeyRing(tmp_path / "keys.json")
    anna, bob = ({"authorization": f"Bearer {ring.add(name)}"} for name in ("anna", "bob"))
    rng = random.Random(7)
    times: dict[str, list[float]] = {"nobody's": [], "another's": [], "one's own": []}

    with live(tmp_path, CHAT, "--context", "512") as server:

        def first_token_s(prompt: list[int], key: dict[str, str]) -> float:
            body = {"model": CHAT, "prompt": prompt, "max_tokens": 1, "temperature": 0}
            began = time.perf_counter()
            answer = server.post("/v1/completions", body, **key)
            took = time.perf_counter() - began
            assert answer.status_code == 200, answer.text
            return took

        first_token_s([5] * 300, anna)  # what is made at the first request
        for _ in range(ROUNDS):
            fresh, asked = ([rng.randrange(100, 40_000) for _ in range(300)] for _ in range(2))
            times["nobody's"].append(first_token_s(fresh, bob))
            first_token_s(asked, anna)
            times["another's"].append(first_token_s(asked, bob))
            times["one's own"].append(first_token_s(asked, anna))
    typical = {whose: statistics.median(some) for whose, some in times.items()}
    assert typical["one's own"] < typical["nobody's"] / 2, times  # the clock sees the cache
    assert typical["another's"] > typical["nobody's"] / 2, times


def test_replays_of_two_tenants_share_no_pages() -> None:
    """A replay does not say what it found in the cache, but how long it took would."""
    asks: list[Ask] = []

    def submit(ask: Ask, on_event: Any) -> int:
        asks.append(ask)
        on_event(Token(5))
        on_event(Digest("0" * 16))
        on_event(Ended("length"))
        return 1

    model: Any = SimpleNamespace(
        need=lambda *_: None,
        place=SimpleNamespace(used=contextlib.nullcontext),
        engine=SimpleNamespace(submit=submit, cancel=lambda number: None),
        adapter=None,
        identity=dict,
    )
    sequence = {
        "parameters": params_to(SamplingParams(max_tokens=1, seed=0)),
        "constraint": None,
        "prompt": {"ids": [1, 2, 3]},
        "answer": {"ids": [5]},
        "logits": [],
    }
    record = {"id": "rec_1", "model": {}, "sequences": [sequence]}
    for tenant in ("anna", "bob", "anna"):
        assert asyncio.run(replay_on(model, record, tenant)).verdict == "EXACT"
    salts = [ask.salt for ask in asks]
    assert salts[0] == salts[2] != salts[1]
