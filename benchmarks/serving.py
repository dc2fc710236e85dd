"""The server against its own engine, and under load: `python -m benchmarks.serving [MODEL] [--seconds 60]`.

Four things, in one process of this program and one `vitral serve`, about four minutes; the figures go to
results/serving.json. The client shares the processors with what it measures, so it writes and reads plain sockets:
httpx takes more time for a token than the server does.

- throughput: 16 streams over HTTP, and the same requests on the engine alone, in turns; the ratio of tokens a second.
- first token: the same prompt on the idle server and on the idle engine; medians.
- exact: 64 clients of mixed lengths for `--seconds`, some leaving; every completed answer is compared with the one
  that it was alone.
- overload: four times the work that the server takes on; what is refused, how fast, and how fast it is afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import vitral
from benchmarks import record
from vitral.engine.request import NewToken, SamplingParams
from vitral.language_model import LanguageModel

STREAMS, TOKENS, CLIENTS = 16, 96, 64


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me something about the number {number}."}]


def body(model: str, number: int, tokens: int = TOKENS) -> dict[str, Any]:
    return {"model": model, "messages": question(number), "max_tokens": tokens, "temperature": 0, "seed": number}


@asynccontextmanager
async def served(model: str, folder: str, *extra: str) -> AsyncIterator[httpx.AsyncClient]:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitral", "serve", model, "--port", "0", "--folder", folder, "--json", *extra],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    try:
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(base_url=json.loads(text)["url"], timeout=600, limits=limits) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


@asynccontextmanager
async def asked_of(client: httpx.AsyncClient, asked: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
    """A chat's answer as the bytes of its connection, which ends with it."""
    content = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        writer.write(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        yield reader
    finally:
        writer.close()


async def stream(client: httpx.AsyncClient, asked: dict[str, Any], leave_after: int = 1 << 30) -> tuple[str, float]:
    """Text and seconds to the first token."""
    began, first, text, chunks = time.perf_counter(), 0.0, "", 0
    async with asked_of(client, {**asked, "stream": True}) as reader:
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read()
        while chunks < leave_after and (line := await reader.readline()):
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                if piece:
                    first = first or time.perf_counter() - began
                    text += piece
                    chunks += 1
    return text, first


async def drain(client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    """Read a stream to its end and look at nothing."""
    async with asked_of(client, {**asked, "stream": True}) as reader:
        while await reader.read(1 << 16):
            pass


async def status_of(client: httpx.AsyncClient, asked: dict[str, Any]) -> int:
    """The status of an answer, once all of it is read."""
    async with asked_of(client, asked) as reader:
        return int((await reader.read()).split(b" ", 2)[1])


def on_engine(model: LanguageModel, numbers: range) -> float:
    """Tokens a second of the engine alone."""
    params = SamplingParams(max_tokens=TOKENS)
    for number in numbers:
        model.engine.add(model.tokenizer.encode_chat(question(number)), params)
    made, began = 0, time.perf_counter()
    while not model.engine.idle:
        made += sum(isinstance(event, NewToken) for event in model.engine.step())
    return made / (time.perf_counter() - began)


async def over_http(client: httpx.AsyncClient, name: str, numbers: range) -> float:
    """Tokens a second of as many streams."""
    before, began = await tokens_made(client), time.perf_counter()
    await asyncio.gather(*(drain(client, body(name, number)) for number in numbers))
    seconds = time.perf_counter() - began
    return (await tokens_made(client) - before) / seconds


async def tokens_made(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith('vitral_tokens_total{kind="completion"'))


async def throughput(client: httpx.AsyncClient, name: str, rounds: int) -> dict[str, Any]:
    with vitral.load(name) as model:
        alone, http, first_alone, first_http = [], [], [], []
        on_engine(model, range(1))
        await drain(client, body(name, 0))
        for i in range(rounds):  # in turns: the machine's mood strikes both
            numbers = range(1000 * i, 1000 * i + STREAMS)
            alone.append(on_engine(model, numbers))
            http.append(await over_http(client, name, numbers))
            began = time.perf_counter()
            with model.stream(messages=question(-i), max_tokens=1) as pieces:
                next(pieces, "")
            first_alone.append(time.perf_counter() - began)
            first_http.append((await stream(client, body(name, -i, 1)))[1])
    return {
        "engine_tokens_per_s": statistics.median(alone),
        "http_tokens_per_s": statistics.median(http),
        "ratio": statistics.median(h / a for h, a in zip(http, alone, strict=True)),
        "turns": [{"engine": round(a, 1), "http": round(h, 1)} for a, h in zip(alone, http, strict=True)],
        "first_token_engine_ms": 1000 * statistics.median(first_alone),
        "first_token_http_ms": 1000 * statistics.median(first_http),
    }


async def exact(client: httpx.AsyncClient, name: str, seconds: float) -> dict[str, Any]:
    asked = [
        {**body(name, i, 4 + 5 * (i % 7)), "temperature": i % 2} | ({"stop": ["the"]} if i % 5 == 0 else {})
        for i in range(24)
    ]
    alone = [(await stream(client, each))[0] for each in asked]
    end, wrong, done, left = time.monotonic() + seconds, 0, 0, 0

    async def one(number: int) -> None:
        nonlocal wrong, done, left
        while time.monotonic() < end:
            number += 1
            each, wanted = asked[number % 24], alone[number % 24]
            if number % 6 == 5:
                await stream(client, each, leave_after=1)
                left += 1
                continue
            if number % 2:
                text = (await stream(client, each))[0]
            else:
                answer = (await client.post("/v1/chat/completions", json=each)).json()
                text = answer["choices"][0]["message"]["content"]
            done += 1
            wrong += text != wanted

    await asyncio.gather(*(one(i) for i in range(CLIENTS)))
    return {"answers": done, "left_early": left, "different": wrong}


async def overload(client: httpx.AsyncClient, name: str, seconds: float) -> dict[str, Any]:
    async def timed() -> tuple[int, float]:
        began = time.perf_counter()
        return await status_of(client, body(name, 1, 16)), time.perf_counter() - began

    calm = statistics.median([(await timed())[1] for _ in range(5)])
    end, refused, accepted = time.monotonic() + seconds, [], []

    async def one() -> None:
        while time.monotonic() < end:
            status, took = await timed()
            (accepted if status == 200 else refused).append(took)
            if status == 429:
                await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(64)))
    after = statistics.median([(await timed())[1] for _ in range(5)])
    return {
        "accepted": len(accepted),
        "accepted_median_s": statistics.median(accepted),
        "accepted_p99_s": sorted(accepted)[int(len(accepted) * 0.99)],
        "refused": len(refused),
        "refused_median_ms": 1000 * statistics.median(refused) if refused else None,
        "refused_p99_ms": 1000 * sorted(refused)[int(len(refused) * 0.99)] if refused else None,
        "before_s": calm,
        "after_s": after,
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2:135m")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder for serving.json")
    given = parser.parse_args()
    found: dict[str, Any] = {"model": given.model, "seconds": given.seconds}
    with tempfile.TemporaryDirectory() as folder:
        async with served(given.model, folder) as client:
            found |= await throughput(client, given.model, given.rounds)
            found["exact"] = await exact(client, given.model, given.seconds)
        async with served(given.model, folder, "--queue-requests", "16") as client:
            found["overload"] = await overload(client, given.model, given.seconds)
    print(json.dumps(found, indent=2))
    print(f"written to {record.write('serving', found, given.out)}")


if __name__ == "__main__":
    asyncio.run(main())
