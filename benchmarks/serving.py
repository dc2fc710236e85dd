"""The server against its own engine: `python -m benchmarks.serving [MODEL] [--rounds 9]`; figures in results/serving.json.

Two things, in one process of this program and one `vitral serve`, about two minutes.

- throughput: 16 streams over HTTP, and the same requests on the engine alone, in turns; the ratio of tokens a second.
  Each stream is read to its end and says what the engine says. Beside it the processor time that server, worker and
  client took for a token, which other work on the machine disturbs least.
- first token: the same prompt on the idle server and on the idle engine; medians.

What the server does under load: `benchmarks.exact`, `benchmarks.overload`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import vitral
from benchmarks.over_http import Reply, Server, connection, run, streams
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


def on_engine(model: LanguageModel, numbers: range) -> tuple[float, list[list[int]]]:
    """Seconds of the engine alone, and the tokens of each answer."""
    params = SamplingParams(max_tokens=TOKENS, stop_ids=model.tokenizer.eos_ids)
    prompts = [model.tokenizer.encode_chat(question(number)) for number in numbers]
    answers: dict[int, list[int]] = {model.engine.add(prompt, params): [] for prompt in prompts}
    began = time.perf_counter()
    while not model.engine.idle:
        for event in model.engine.step():
            if isinstance(event, NewToken):
                answers[event.request_id].append(event.token)
    return time.perf_counter() - began, list(answers.values())


def over_http(server: Server, name: str, numbers: range) -> tuple[float, list[Reply]]:
    """Seconds of as many streams, and what each said."""
    return streams(server, CHATS, [{**body(name, number), "stream": True} for number in numbers])


def text_in(reply: Reply) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events())


def text_of(model: LanguageModel, answer: list[int]) -> str:
    """An answer without the token that ended it."""
    stream = model.tokenizer.stream()
    return "".join(stream.push(token) for token in answer if token not in model.tokenizer.eos_ids) + stream.finish()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def throughput(server: Server, name: str, rounds: int) -> dict[str, Any]:
    [worker] = server.workers()
    who = {"server": server.pid, "worker": worker, "client": os.getpid()}
    with vitral.load(name) as model:
        alone, http, first_alone, first_http = [], [], [], []
        cpu, made = dict.fromkeys(who, 0.0), 0
        on_engine(model, range(1))
        over_http(server, name, range(1))
        for i in range(rounds):  # in turns: the machine's mood strikes both
            numbers = range(1000 * i, 1000 * i + STREAMS)
            seconds, answers = on_engine(model, numbers)
            n = sum(map(len, answers))
            alone.append(n / seconds)
            before = {each: cpu_s(pid) for each, pid in who.items()}
            seconds, replies = over_http(server, name, numbers)
            cpu = {each: cpu[each] + cpu_s(pid) - before[each] for each, pid in who.items()}
            http.append(n / seconds)
            made += n
            said, due = [text_in(reply) for reply in replies], [text_of(model, answer) for answer in answers]
            assert said == due, f"round {i}: other texts than the engine's"
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
        "cpu_us_per_token": {each: round(1e6 * seconds / made, 1) for each, seconds in cpu.items()},
        "first_token_engine_ms": 1000 * statistics.median(first_alone),
        "first_token_http_ms": 1000 * statistics.median(first_http),
    }


async def measured(server: Server, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return await throughput(server, given.model, given.rounds)


if __name__ == "__main__":
    run("serving", str(__doc__), measured, ("uvicorn", "starlette"), {"rounds": 9})
