"""Exact under load: `python -m benchmarks.exact [MODEL] [--seconds 240]`; figures in results/exact.json.

Each of the requests is first asked alone on an idle server. Then 64 clients ask them, in an order of their own, for
`--seconds`: chats and completions, short and long, greedy and sampled, with log-probabilities, two answers at once,
JSON schemas and tools; streamed and not; with two LoRA adapters that were loaded live, and with a third name that
stands for one adapter, then for none, then for another, all the while; one in six hangs up. Held to be equal:

- what each completed answer says, byte for byte: texts, calls with their ids, reasons, log-probabilities as written;
- what its record says: the ids, and the digest of the logits of every step (of one cut short, as far as it came);
- the same requests alone, once more, when the load has gone.

Memory is the resident set of the server's and the worker's process, every second. It is steady if the median of the
last quarter of the load is above that of the second quarter by at most 8 MB. 5,000 answers of one token come before
the load, because the database's caches grow until then; its first quarter warms up too: the cache's pages and the
allocators' arenas are touched for the first time. How small a leak that shows is said beside it, as bytes for each
answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.over_http import Server, connection, counted, run, sent
from tests.formats.test_adapters import random_parts, write_peft
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import admitted

CLIENTS = 64
WARM_UP = 5000  # answers of one token
GROWTH_MB = 8.0
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GUESTS = ("guest", ("one", "other"))  # a name, and the adapters that it stands for by turns
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["glass", "lead", "light"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "paint", "parameters": _PERSON}}


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what kind it is."""

    kind: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking: the HTTP status, the record, and all that the answer says, as one text."""

    status: int
    record: str | None = None
    said: str | None = None


@dataclass(slots=True)
class Memory:
    """Resident bytes over time: (seconds, server, worker)."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def judged(self, seconds: float, answers: int) -> dict[str, Any]:
        """The growth of each process between the second and the last quarter, and whether both are steady."""
        found: dict[str, Any] = {}
        for i, who in enumerate(("server", "worker"), 1):
            second, last = (
                statistics.median([s[i] for s in self.samples if a <= s[0] / seconds <= b])
                for a, b in ((0.25, 0.5), (0.75, 1.0))
            )
            rows = [(s[0], s[i]) for s in self.samples if s[0] >= seconds / 4]
            slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(rows, 2) if t > s]
            found[who] = {
                "first_mb": self.samples[0][i] / 1e6,
                "second_quarter_mb": second / 1e6,
                "last_quarter_mb": last / 1e6,
                "growth_mb": (last - second) / 1e6,
                "slope_mb_per_min": statistics.median(slopes) * 60 / 1e6,
                "most_mb": max(s[i] for s in self.samples) / 1e6,
            }
        return {
            "rule": f"the last quarter's median is above the second quarter's by at most {GROWTH_MB:g} MB",
            "steady": all(found[who]["growth_mb"] <= GROWTH_MB for who in found),
            "smallest_leak_seen_bytes_per_answer": round(GROWTH_MB * 1e6 / max(1, answers / 2)),
            **found,
        }


def cases(model: str, names: tuple[str, str, str], longest: int, turns: int) -> list[Case]:
    """Requests that differ in kind, length and parameters, `turns` of each kind; prompts of about `longest` tokens at most."""
    plain, red, blue = model, f"{model}:{names[0]}", f"{model}:{names[1]}"
    guest = f"{model}:{names[2]}"
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        ("greedy", CHATS, plain, {"temperature": 0}),
        ("sampled", CHATS, plain, {"temperature": 1.2, "top_p": 0.9, "logprobs": True, "top_logprobs": 3}),
        ("completion", COMPLETIONS, plain, {"temperature": 0.7, "logprobs": 2, "stop": [" the", "7"]}),
        ("schema", CHATS, plain, {"temperature": 1, "response_format": schema}),
        ("tool", CHATS, plain, {"temperature": 1, "tools": [_TOOL], "tool_choice": "required"}),
        ("adapter", CHATS, red, {"temperature": 0}),
        ("adapter", COMPLETIONS, blue, {"temperature": 1, "logprobs": 0}),
        ("schema with adapter", CHATS, blue, {"temperature": 1, "response_format": schema}),
        ("guest adapter", CHATS, guest, {"temperature": 0}),
        ("two", CHATS, plain, {"temperature": 1, "n": 2, "frequency_penalty": 0.5}),
    ]
    found = []
    for i in range(turns * len(kinds)):
        kind, path, name, more = kinds[i % len(kinds)]
        turn = i // len(kinds)
        items = max(1, longest // 8 >> 2 * ((turn + i) % 4))  # an item is about eight tokens
        text = f"{i} lists " + ", ".join(f"pane {i}-{k}" for k in range(items))
        asked = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
        most = {"schema": 96, "schema with adapter": 96, "tool": 96}.get(kind, 6 + 14 * turn)
        found.append(Case(kind, path, {"model": name, "seed": i, "max_tokens": most, **asked, **more}))
    return found


async def ask(server: Server, case: Case, *, streamed: bool) -> Answer:
    """Ask to the end."""
    if not streamed:
        reply = await sent(server, case.path, case.body)
        if reply.status != 200:
            return Answer(reply.status)
        body = _numbers_as_written(reply.body)
        return Answer(200, body["record"], _said([_whole(choice) for choice in body["choices"]]))
    wholes: dict[int, dict[str, Any]] = {}
    async with connection(server, case.path, {**case.body, "stream": True}) as reader:
        status, id = await _head(reader)
        if status != 200:
            return Answer(status)
        ended = False
        while line := await reader.readline():
            ended = ended or line == b"data: [DONE]\n"
            if line.startswith(b"data: {"):
                chunk = _numbers_as_written(line[6:])
                if "error" in chunk:
                    return Answer(500, id, json.dumps(chunk))
                for choice in chunk["choices"]:
                    _add(wholes.setdefault(choice["index"], _whole({})), choice)
    return Answer(200 if ended else 0, id, _said([wholes[i] for i in sorted(wholes)]))


async def leave(server: Server, case: Case, *, streamed: bool, after: int) -> Answer:
    """Ask and hang up: in a stream after some events, else after some tenths of a second."""
    body = {**case.body, "stream": streamed}
    async with connection(server, case.path, body) as reader:
        if not streamed:
            await asyncio.sleep(after / 10)
            return Answer(200)
        status, id = await _head(reader)
        for _ in range(2 * after):
            await reader.readline()
        return Answer(status, id)


async def _head(reader: asyncio.StreamReader) -> tuple[int, str | None]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    records = [line.partition(":")[2].strip() for line in head if line.lower().startswith("x-vitral-record:")]
    return int(head[0].split(" ", 2)[1]), records[0] if records else None


def _numbers_as_written(data: bytes) -> Any:
    return json.loads(data, parse_float=str)


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    """What a choice says, without what a stream cuts otherwise."""
    message = choice.get("message") or {}
    calls = [[c["id"], c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls") or ()]
    text = choice.get("text", "") + (message.get("content") or "")
    return {
        "text": text,
        "calls": calls,
        "logprobs": _scores(choice.get("logprobs")),
        "finish": choice.get("finish_reason"),
    }


def _add(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice.get("delta") or {}
    whole["text"] += choice.get("text", "") + (delta.get("content") or "")
    for call in delta.get("tool_calls") or ():
        if "id" in call:
            whole["calls"].append([call["id"], call["function"]["name"], ""])
        whole["calls"][call["index"]][2] += call["function"]["arguments"]
    whole["logprobs"] += _scores(choice.get("logprobs"))
    whole["finish"] = choice.get("finish_reason") or whole["finish"]


def _scores(logprobs: dict[str, Any] | None) -> list[Any]:
    """A chat's scores as they are; a completion's lists token by token."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"] or ())
    return [
        list(each) for each in zip(*(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    ]


def _said(wholes: list[dict[str, Any]]) -> str:
    return json.dumps(wholes, sort_keys=True, ensure_ascii=False)


class Load:
    """One run: the requests, what they were alone, and what came of them under load."""

    def __init__(self, server: Server, model: str, folder: Path, longest: int = 240, turns: int = 3) -> None:
        spec = open_checkpoint(admitted(model)).spec
        self.server = server
        self.paths = {
            name: write_peft(folder / name, random_parts(spec, 4, 0.05, seed), {"r": 4, "lora_alpha": 0.2})
            for seed, name in enumerate(("red", "blue", *GUESTS[1]))
        }
        self.adapters = f"/v1/models/{model}/adapters"
        self.cases = cases(model, ("red", "blue", GUESTS[0]), longest, turns)
        self.alone: dict[tuple[int, str | None], Answer] = {}  # by the case and the digest of its adapter
        self.made: list[tuple[int, Answer]] = []
        self.left: list[tuple[int, Answer]] = []
        self.statuses: Counter[int] = Counter()
        self.memory = Memory()
        self._turn = itertools.count()

    async def prepare(self) -> None:
        """Load the adapters and ask everything alone."""
        for name in ("red", "blue"):
            assert await self._load(name, name) == 200
        for case_of_guest, adapter in ((False, None), *((True, name) for name in GUESTS[1])):
            if adapter is not None:
                assert await self._load(GUESTS[0], adapter) == 200
            for i, case in enumerate(self.cases):
                if (case.kind == "guest adapter") == case_of_guest:
                    answer = await ask(self.server, case, streamed=False)
                    assert answer.status == 200, (case, answer)
                    self.alone[i, (await self._recorded(answer))["model"]["adapter"]] = answer
            if adapter is not None:
                assert (await sent(self.server, f"{self.adapters}/{GUESTS[0]}", None, "DELETE")).status == 200

    async def run(self, seconds: float, clients: int) -> None:
        """The load itself; each client asks at least once."""
        began = time.monotonic()
        aside = [asyncio.create_task(work) for work in (self._sample(began), self._exchange())]
        await asyncio.gather(*(self._client(i, began + seconds) for i in range(clients)))
        for task in aside:
            task.cancel()
        for failed in await asyncio.gather(*aside, return_exceptions=True):
            if not isinstance(failed, asyncio.CancelledError):
                raise failed if isinstance(failed, BaseException) else AssertionError("it never ends")

    async def differences(self) -> list[str]:
        """What is not as it was alone, one line each."""
        found = []
        want = {key: await self._recorded(answer) for key, answer in self.alone.items()}
        for i, answer in self.made:
            recorded = await self._recorded(answer)
            key = i, recorded["model"]["adapter"]
            if answer.said != self.alone[key].said:
                found.append(f"{self.cases[i].kind} {i}: {answer.said} for {self.alone[key].said}")
            elif _steps(recorded) != _steps(want[key]):
                found.append(f"{self.cases[i].kind} {i}: the same text of other logits, record {answer.record}")
        for i, answer in self.left:
            reply = await sent(self.server, f"/v1/records/{answer.record}")
            if reply.status == 404:
                continue  # it left before its work began
            recorded = reply.json()
            some, whole = _steps(recorded), _steps(want[i, recorded["model"]["adapter"]])
            if len(some) != len(whole) or any(s != w[: len(s)] for s, w in zip(some, whole, strict=True)):
                found.append(f"{self.cases[i].kind} {i}: cut short, and not as it begins alone, record {answer.record}")
        return found

    async def afterwards(self) -> list[str]:
        """The same alone again, without the guest, which may be any."""
        found = []
        for (i, _), wanted in self.alone.items():
            if self.cases[i].kind != "guest adapter":
                answer = await ask(self.server, self.cases[i], streamed=True)
                if answer.said != wanted.said:
                    found.append(f"{self.cases[i].kind} {i}: {answer.said} for {wanted.said}")
        return found

    async def _client(self, number: int, end: float) -> None:
        mood = random.Random(number)
        for turn in itertools.count():
            if turn and time.monotonic() >= end:
                return
            i = next(self._turn) % len(self.cases) if turn == 0 else mood.randrange(len(self.cases))
            streamed = mood.random() < 0.5
            if mood.random() < 1 / 6:
                answer = await leave(self.server, self.cases[i], streamed=streamed, after=mood.randrange(6))
                if answer.record is not None and answer.status == 200:
                    self.left.append((i, answer))
                else:
                    self.statuses[answer.status] += 1
                continue
            answer = await ask(self.server, self.cases[i], streamed=streamed)
            if answer.status == 200:
                self.made.append((i, answer))
            elif answer.status == 404 and self.cases[i].kind == "guest adapter":
                await asyncio.sleep(0.05)  # the name stands for nothing now
                self.statuses[404] += 1
            else:
                raise AssertionError(f"{self.cases[i]}: {answer}")

    async def _sample(self, began: float) -> None:
        (worker,) = self.server.workers()
        while True:
            self.memory.samples.append((time.monotonic() - began, _resident(self.server.pid), _resident(worker)))
            await asyncio.sleep(1)

    async def _exchange(self) -> None:
        name, adapters = GUESTS
        for adapter in itertools.cycle(adapters):
            while await self._load(name, adapter) != 200:
                await asyncio.sleep(0.1)  # requests with the one before have not ended
            await asyncio.sleep(1.5)
            assert (await sent(self.server, f"{self.adapters}/{name}", None, "DELETE")).status == 200

    async def _load(self, name: str, adapter: str) -> int:
        return (await sent(self.server, self.adapters, {"name": name, "path": str(self.paths[adapter])})).status

    async def _recorded(self, answer: Answer) -> Any:
        reply = await sent(self.server, f"/v1/records/{answer.record}")
        assert reply.status == 200, (answer, reply)
        return reply.json()


def _steps(recorded: dict[str, Any]) -> list[list[tuple[int, str]]]:
    return [list(zip(s["answer"]["ids"], s["logits"], strict=True)) for s in recorded["sequences"]]


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def measured(server: Server, model: str, folder: Path, seconds: float, clients: int = CLIENTS) -> dict[str, Any]:
    """Prepare, load, compare; plain figures."""
    load = Load(server, model, folder)
    await load.prepare()
    deaths = await counted(server, "vitral_engine_deaths_total{")
    began = time.monotonic()
    await load.run(seconds, clients)
    took = time.monotonic() - began
    different, after = await load.differences(), await load.afterwards()
    return {
        "clients": clients,
        "seconds": took,
        "requests": len(load.cases),
        "answers": len(load.made),
        "answers_by_kind": dict(sorted(Counter(load.cases[i].kind for i, _ in load.made).items())),
        "left_early": len(load.left) + load.statuses[200],
        "left_early_compared": len(load.left),
        "guest_was_not_there": load.statuses[404],
        "different": len(different),
        "different_afterwards": len(after),
        "examples": [*different, *after][:5],
        "worker_deaths": await counted(server, "vitral_engine_deaths_total{") - deaths,
        "memory": load.memory.judged(took, len(load.made)),
    }


async def warm(server: Server, model: str) -> None:
    """The answers after which a server's memory is what it stays."""
    numbers = iter(range(WARM_UP))

    async def client() -> None:
        for number in numbers:
            asked = {"model": model, "prompt": f"Number {number}", "max_tokens": 1}
            assert (await sent(server, "/v1/completions", asked)).status == 200

    await asyncio.gather(*(client() for _ in range(16)))


async def asked_for(server: Server, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    await warm(server, given.model)
    return {"warmed_up_by_answers": WARM_UP} | await measured(server, given.model, folder, given.seconds)


if __name__ == "__main__":
    found = run("exact", str(__doc__), asked_for, ("numpy", "uvicorn", "starlette"), {"seconds": 240.0})
    sys.exit(0 if not found["different"] + found["different_afterwards"] and found["memory"]["steady"] else 1)
