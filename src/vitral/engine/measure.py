"""How fast an engine is here, beside what memory gives in the same seconds.

Decoding reads all active weights for each token, so memory is its limit, and on a shared machine that
limit is another number a minute later: each decoding is timed between two streaming reads, and what
is reported is their ratio. Prompts are random ids, other ones in each turn, so that no cache knows them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import SettingsError
from vitral.formats.weights import Weights

__all__ = ["Figure", "Plan", "Runs", "StreamingRead", "bytes_per_token", "measure", "resident_bytes"]

_LEAST_READ, _MOST_READ = 64 << 20, 512 << 20  # bytes of the probe's buffer
_PASSES_BYTES = 512 << 20  # bytes read by one probe, at least


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, once for each turn.

    >>> Figure("decode", "tokens/s", (9.0, 11.0, 10.0)).median
    10.0
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value to report."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: lengths in tokens, how many sequences decode together, how often. Checks itself."""

    prompt: int = 512
    answer: int = 64
    together: int = 16
    turns: int = 3

    def __post_init__(self) -> None:
        for name, least, most in (
            ("prompt", 1, 1 << 20),
            ("answer", 2, 1 << 20),
            ("together", 2, 64),
            ("turns", 1, 99),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(f"{name} is {value}; allowed: {least} to {most}")

    @property
    def context(self) -> int:
        """The context length that one sequence needs."""
        return max(self.prompt, _SHORT) + self.answer


_SHORT = 16  # tokens before an answer whose speed is measured


class StreamingRead:
    """Reads memory with all threads at once; the working set is what a token reads, if that is 64 to 512 MiB."""

    def __init__(self, working_set: int, threads: int) -> None:
        n_bytes = min(max(working_set, _LEAST_READ), _MOST_READ)
        self._parts = np.array_split(np.ones(n_bytes // 8, np.int64), threads)
        self._passes = -(-_PASSES_BYTES // n_bytes)
        self._threads = threads
        self.n_bytes = n_bytes

    def __call__(self) -> float:
        """Bytes per second now."""

        def read(part: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
            for _ in range(self._passes):
                part.sum()

        with ThreadPoolExecutor(self._threads) as pool:
            began = time.perf_counter()
            list(pool.map(read, self._parts))
            return self._passes * self.n_bytes / (time.perf_counter() - began)


def bytes_per_token(weights: Weights) -> int:
    """Bytes of the weights that decoding one token must read.

    All tensors, but of an untied embedding one row, and of experts only as many as a token uses.
    """
    spec, total = weights.spec, 0.0
    for name, tensor in weights.items():
        n_bytes = math.prod(tensor.shape) // tensor.type.block * tensor.type.bytes_per_block
        if name == "embed.weight" and not spec.tied_embeddings:
            n_bytes = n_bytes // spec.vocab_size
        if spec.moe is not None and ".experts." in name:
            total += n_bytes * spec.moe.n_experts_per_token / spec.moe.n_experts
        else:
            total += n_bytes
    return round(total)


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def measure(
    engine: Engine,
    plan: Plan,
    *,
    vocab_size: int,
    token_bytes: int,
    threads: int,
    on_turn: Callable[[int, int], None] | None = None,
) -> list[Figure]:
    """All figures; `token_bytes` is `bytes_per_token` of the weights, `on_turn(done, all)` sees the progress.

    Units: tokens/s, ms, GB/s (10^9), %, MB (10^6). A first turn of each kind warms up and does not count.
    """
    runs = Runs(engine, vocab_size)
    todo: list[tuple[Callable[[], float], list[float]]] = []
    prefill: list[float] = []
    first: list[float] = []
    decode: list[float] = []
    batched: list[float] = []
    reads: list[float] = []
    shares: list[float] = []
    probe = StreamingRead(token_bytes, threads)

    def decode_beside_read() -> float:
        around = [probe()]
        rate = runs.decode(plan)
        around.append(probe())
        reads.append(statistics.mean(around))
        shares.append(100 * rate * token_bytes / reads[-1])
        return rate

    todo += [
        (runs.first_token, first),
        (lambda: runs.prefill(plan), prefill),
        (decode_beside_read, decode),
        (lambda: runs.batched(plan), batched),
    ]
    done, total = 0, len(todo) * (plan.turns + 1)
    for run, values in todo:
        for _ in range(plan.turns + 1):
            values.append(run())
            done += 1
            if on_turn is not None:
                on_turn(done, total)
    figures = [
        _figure(f"prefill, {plan.prompt} tokens", "tokens/s", prefill),
        _figure("decode, one sequence", "tokens/s", decode),
        _figure(f"decode, {plan.together} sequences together", "tokens/s", batched),
        _figure(f"first token after {_SHORT}", "ms", [1000 * s for s in first]),
        _figure("streaming read, same moment", "GB/s", [rate / 1e9 for rate in reads]),
        _figure("share of it that decode uses", "%", shares),
    ]
    resident = resident_bytes()
    if resident is not None:
        figures.append(Figure("resident memory", "MB", ((resident - probe.n_bytes) / 1e6,)))
    return figures


def _figure(name: str, unit: str, values: Sequence[float]) -> Figure:
    return Figure(name, unit, tuple(values[1:]))


@dataclass
class Runs:
    """Single runs on an engine, each with a prompt of its own."""

    engine: Engine
    vocab_size: int
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def prefill(self, plan: Plan) -> float:
        """Tokens of prompt per second."""
        began = time.perf_counter()
        next(self._times(plan.prompt, 1))
        return plan.prompt / (time.perf_counter() - began)

    def first_token(self) -> float:
        """Seconds from a short prompt to its first token."""
        began = time.perf_counter()
        return next(self._times(_SHORT, 1)) - began

    def decode(self, plan: Plan) -> float:
        """Tokens per second of one answer, the first not counted."""
        times = list(self._times(_SHORT, plan.answer))
        return (len(times) - 1) / (times[-1] - times[0])

    def batched(self, plan: Plan) -> float:
        """Tokens per second of all answers together, from when the last has begun."""
        waiting = {self.engine.add(self._prompt(_SHORT), self._params(plan.answer)) for _ in range(plan.together)}
        tokens, began, ended = 0, 0.0, 0.0
        while not self.engine.idle:
            events = self.engine.step()
            _raise_errors(events)
            now = time.perf_counter()
            new = [event.request_id for event in events if isinstance(event, NewToken)]
            if waiting:
                waiting -= set(new)
                began = now
            else:
                tokens, ended = tokens + len(new), now
        return tokens / (ended - began)

    def _times(self, prompt: int, answer: int) -> Iterator[float]:
        """When each token came."""
        times = []
        with self.engine.answer(self._prompt(prompt), self._params(answer)) as events:
            for event in events:
                _raise_errors([event])
                if isinstance(event, NewToken):
                    times.append(time.perf_counter())
        return iter(times)

    def _prompt(self, n: int) -> list[int]:
        return [int(token) for token in self.draw.integers(0, self.vocab_size, n)]

    @staticmethod
    def _params(answer: int) -> SamplingParams:
        return SamplingParams(max_tokens=answer)


def _raise_errors(events: Sequence[object]) -> None:
    for event in events:
        if isinstance(event, Finished) and event.error is not None:
            raise event.error
