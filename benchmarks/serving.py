"""The server against its own engine: `python -m benchmarks.serving [MODEL]`.

Two things, in one process of this program and one `vitral serve`, about two minutes; the figures go to
results/serving.json.

- throughput: 16 streams over HTTP, and the same requests on the engine alone, in turns; the ratio of tokens a second.
- first token: the same prompt on the idle server and on the idle engine; medians.

What the server does under load: `benchmarks.exact`, `benchmarks.overload`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import vitral
from benchmarks import record
from benchmarks.over_http import Server, connection, sent, served
from vitral.engine.request import NewToken, SamplingParams
from vitral.language_model import LanguageModel

STREAMS, TOKENS = 16, 96
CHATS = "/v1/chat/completions"


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me something about the number {number}."}]


def body(model: str, number: int, tokens: int = TOKENS) -> dict[str, Any]:
    return {"model": model, "messages": question(number), "max_tokens": tokens, "temperature": 0, "seed": number}


async def first_token_s(server: Server, asked: dict[str, Any]) -> float:
    """Seconds to the first text of a stream."""
    began = time.perf_counter()
    async with connection(server, CHATS, {**asked, "stream": True}) as reader:
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read()
        while line := await reader.readline():
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return time.perf_counter() - began
    raise AssertionError("the stream ended without a text")


async def drain(server: Server, asked: dict[str, Any]) -> None:
    """Read a stream to its end and look at nothing."""
    async with connection(server, CHATS, {**asked, "stream": True}) as reader:
        while await reader.read(1 << 16):
            pass


def on_engine(model: LanguageModel, numbers: range) -> float:
    """Tokens a second of the engine alone."""
    params = SamplingParams(max_tokens=TOKENS)
    for number in numbers:
        model.engine.add(model.tokenizer.encode_chat(question(number)), params)
    made, began = 0, time.perf_counter()
    while not model.engine.idle:
        made += sum(isinstance(event, NewToken) for event in model.engine.step())
    return made / (time.perf_counter() - began)


async def over_http(server: Server, name: str, numbers: range) -> float:
    """Tokens a second of as many streams."""
    before, began = await tokens_made(server), time.perf_counter()
    await asyncio.gather(*(drain(server, body(name, number)) for number in numbers))
    seconds = time.perf_counter() - began
    return (await tokens_made(server) - before) / seconds


async def tokens_made(server: Server) -> float:
    lines = (await sent(server, "/metrics")).body.decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith('vitral_tokens_total{kind="completion"'))


async def throughput(server: Server, name: str, rounds: int) -> dict[str, Any]:
    with vitral.load(name) as model:
        alone, http, first_alone, first_http = [], [], [], []
        on_engine(model, range(1))
        await drain(server, body(name, 0))
        for i in range(rounds):  # in turns: the machine's mood strikes both
            numbers = range(1000 * i, 1000 * i + STREAMS)
            alone.append(on_engine(model, numbers))
            http.append(await over_http(server, name, numbers))
            began = time.perf_counter()
            with model.stream(messages=question(-i), max_tokens=1) as pieces:
                next(pieces, "")
            first_alone.append(time.perf_counter() - began)
            first_http.append(await first_token_s(server, body(name, -i, 1)))
    return {
        "engine_tokens_per_s": statistics.median(alone),
        "http_tokens_per_s": statistics.median(http),
        "ratio": statistics.median(h / a for h, a in zip(http, alone, strict=True)),
        "turns": [{"engine": round(a, 1), "http": round(h, 1)} for a, h in zip(alone, http, strict=True)],
        "first_token_engine_ms": 1000 * statistics.median(first_alone),
        "first_token_http_ms": 1000 * statistics.median(first_http),
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2:135m")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder for serving.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(given.model, folder) as server:
        found = {"model": given.model} | await throughput(server, given.model, given.rounds)
    print(json.dumps(found, indent=2))
    print(f"written to {record.write('serving', found, given.out)}")


if __name__ == "__main__":
    asyncio.run(main())
