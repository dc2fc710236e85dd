"""A seeded fuzzer of the readers: checkpoints, vocabularies, chat templates, importance matrices.

    python -m tests.formats.fuzz --format gguf --count 100000 --seed 0
    python -m tests.formats.fuzz --format gguf --seed 0 --only 1234     # one of them, with its traceback

Mutation number i of a layout depends on seed, layout and i alone. Each must end in a model or in a
VitralError; another exception, the end of the process, over 2 s of processor time, or over 256 MB
of address space above the file's size is a failure. Mutations run in bulk inside worker processes:
the memory is held down by RLIMIT_AS, the time by a timer, and what neither stops by the parent.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import mmap
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np

from tests.formats import tiny
from tests.formats.mutate import Parts, mutate
from tests.formats.tiny import GgufParts, Sample
from tests.tokenizer import tiny as vocabularies
from vitral import errors
from vitral.errors import VitralError

MEMORY_BYTES = 256 << 20
CPU_SECONDS = 2.0
WALL_SECONDS = 60.0
OUTCOMES = ["model", *errors.__all__]
_SLOTS = struct.Struct(f"<q{len(OUTCOMES)}q")  # index under way, then how often each outcome came
_MOST_FAILURES = 200


@dataclass
class Failure:
    """A mutation that ended as it must not."""

    index: int
    kind: str  # exception, crash, hang, memory
    what: str
    where: str
    count: int = 1


@dataclass
class Report:
    """What a run gave; `failures` has one for each kind and place, with how often."""

    format: str
    count: int
    seed: int
    seconds: float = 0.0
    per_second: float = 0.0
    slowest_cpu_s: float = 0.0
    peak_growth_bytes: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every mutation ended well."""
        return not self.failures and sum(self.outcomes.values()) == self.count


class TooLong(BaseException):
    """The timer rang. Not an Exception, so that nobody catches it by accident."""


def open_and_touch(path: Path) -> None:
    """The code under test: open a checkpoint and read some tensors."""
    from vitral.formats import checkpoint as c

    open_checkpoint = getattr(c, "open_checkpoint", None) or c.open_gguf
    checkpoint = open_checkpoint(path)
    names = list(checkpoint.weights)
    for name in [*names[:4], *names[-3:]]:
        tensor = checkpoint.weights[name]
        tensor.raw()
        tensor.dequantize()


def read_importance(path: Path) -> None:
    """The code under test: read an importance matrix and the means that quantising wants."""
    from vitral.formats.imatrix import read_imatrix

    read_imatrix(path).means()


# --- in the worker ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the workers of one run share; `target` names the function under test as module:function."""

    layout: str
    seed: int
    count: int
    samples: list[tuple[Sample, Parts]]
    target: str = "tests.formats.fuzz:open_and_touch"
    cpu_seconds: float = CPU_SECONDS


class Worker:
    """Runs mutations in this process and tells of failures one by one."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.samples = job, folder, job.samples
        module, function = job.target.split(":")
        self.target: Callable[[Path], None] = getattr(importlib.import_module(module), function)
        for i, (sample, _) in enumerate(self.samples):
            sample.write(folder / str(i))
        self.slowest_cpu_s = 0.0

    def damaged(self, index: int) -> tuple[int, dict[str, bytes | None]]:
        """Which sample mutation `index` starts from, and the files that it changes."""
        rng = Random(f"{self.job.seed}:{self.job.layout}:{index}")
        i = index % len(self.samples)
        sample, parts = self.samples[i]
        return i, mutate(sample, parts, rng)

    @contextmanager
    def placed(self, index: int) -> Iterator[Path]:
        """The path to open, with the damaged files in place; afterwards they are whole again."""
        i, changed = self.damaged(index)
        sample, folder = self.samples[i][0], self.folder / str(i)
        for name, data in changed.items():
            (folder / name).unlink(missing_ok=True)  # a new file: the old one may still be mapped
            if data is not None:
                (folder / name).write_bytes(data)
        try:
            yield folder / sample.entry
        finally:
            for name in changed:
                (folder / name).unlink(missing_ok=True)
                (folder / name).write_bytes(sample.files[name])

    def attempt(self, index: int) -> str | Failure:
        """The outcome of one mutation: "model", the name of an error, or a failure."""
        with self.placed(index) as path:
            begun = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, self.job.cpu_seconds)
            try:
                self.target(path)
                outcome: str | Failure = "model"
            except VitralError as error:
                outcome = type(error).__name__
                str(error)
            except MemoryError as error:
                outcome = Failure(index, "memory", repr(error), place(error))
            except TooLong as error:
                outcome = Failure(index, "hang", f"over {self.job.cpu_seconds} s", place(error))
            except Exception as error:
                outcome = Failure(index, "exception", f"{type(error).__name__}: {error}"[:300], place(error))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest_cpu_s = max(self.slowest_cpu_s, time.process_time() - begun)
        return outcome

    def run(self, indices: range, board: mmap.mmap, tell: Callable[[dict[str, Any]], None]) -> None:
        """All of `indices`; the board says which one is under way and how the others ended."""
        counts = list(_SLOTS.unpack_from(board)[1:])
        before = peak_bytes()
        for n, index in enumerate(indices):
            _SLOTS.pack_into(board, 0, index, *counts)
            outcome = self.attempt(index)
            if isinstance(outcome, Failure):
                tell({"failure": asdict(outcome)})
            else:
                counts[OUTCOMES.index(outcome)] += 1
            if n % 500 == 0:
                gc.collect()
        _SLOTS.pack_into(board, 0, indices.stop, *counts)
        tell({"slowest_cpu_s": self.slowest_cpu_s, "peak_growth_bytes": peak_bytes() - before})


def place(error: BaseException) -> str:
    """The deepest line of ours in a traceback; if there is none, the deepest line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}vitral{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"


def peak_bytes() -> int:
    """The largest resident size so far (Linux); `getrusage` would count the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def address_bytes() -> int:
    """The size of this process's address space now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def ring(signal_number: int, frame: FrameType | None) -> None:
    """The timer's handler."""
    raise TooLong


def work(folder: Path, start: int, step: int) -> None:
    """The worker process, in the folder that its Post made."""
    job = pickle.loads((folder / "job").read_bytes())
    worker = Worker(job, folder)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for i, (sample, _) in enumerate(worker.samples):  # also imports everything before memory is limited
        worker.target(folder / str(i) / sample.entry)
    for index in range(200):  # so do the mutations' own caches
        worker.damaged(index)
    signal.signal(signal.SIGPROF, ring)
    largest = max(sum(map(len, sample.files.values())) for sample, _ in worker.samples)
    limit = address_bytes() + MEMORY_BYTES + largest
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (folder / "board").open("r+b") as file, (folder / "log").open("a") as log:
        board = mmap.mmap(file.fileno(), _SLOTS.size)

        def tell(message: dict[str, Any]) -> None:
            log.write(json.dumps(message) + "\n")
            log.flush()

        tell({"started": start})
        worker.run(range(start, job.count, step), board, tell)


# --- in the parent ---------------------------------------------------------------------------------


class Post:
    """One worker's place: starts it, watches it, starts it again after a crash or a hang."""

    def __init__(self, job: Job, folder: Path, number: int, step: int) -> None:
        self.folder, self.step = folder / str(number), step
        self.folder.mkdir()
        self.board, self.log = self.folder / "board", self.folder / "log"
        self.board.write_bytes(_SLOTS.pack(number, *[0] * len(OUTCOMES)))
        self.log.touch()
        (self.folder / "job").write_bytes(pickle.dumps(job))
        self.lost: list[Failure] = []
        self.start(number)

    def start(self, index: int) -> None:
        """Begin at `index`."""
        self.begun, self.seen, self.since = index, -1, time.monotonic()
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
        program = "import sys; from pathlib import Path; from tests.formats.fuzz import work; "
        program += "work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
        command = [sys.executable, "-c", program, str(self.folder), str(index), str(self.step)]
        with (self.folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, env=environment, cwd=_ROOT)

    def read(self) -> tuple[int, list[int]]:
        """The index under way and the counts of outcomes."""
        index, *counts = _SLOTS.unpack(self.board.read_bytes())
        return index, counts

    def watch(self) -> bool:
        """Whether the work goes on."""
        code = self.process.poll()
        index, _ = self.read()
        if code is None:
            if index != self.seen:
                self.seen, self.since = index, time.monotonic()
            elif time.monotonic() - self.since > WALL_SECONDS:
                self.process.kill()
                self.process.wait()
                self.again(Failure(index, "hang", f"over {WALL_SECONDS} s in one call", "?"))
            return True
        if code == 0:
            return False
        last = (self.folder / "stderr").read_text(errors="replace")[-2000:]
        if {"started": self.begun} not in self.messages():
            raise RuntimeError(f"a worker of the fuzzer cannot start:\n{last}")
        self.again(Failure(index, "crash", f"exit code {code}: {last[-300:]}", "?"))
        return True

    def again(self, failure: Failure) -> None:
        """Note a failure and go on with the next mutation."""
        self.lost.append(failure)
        if len(self.lost) > _MOST_FAILURES:
            raise RuntimeError(f"over {_MOST_FAILURES} crashes or hangs; the last: {failure}")
        following = failure.index + self.step
        _, counts = self.read()
        self.board.write_bytes(_SLOTS.pack(following, *counts))
        self.start(following)

    def messages(self) -> list[dict[str, Any]]:
        """Everything that the worker told."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


_ROOT = Path(__file__).resolve().parents[2]


def _python_path() -> str:
    return os.pathsep.join([str(_ROOT / "src"), str(_ROOT), os.environ.get("PYTHONPATH", "")])


def samples_of(layout: str) -> list[tuple[Sample, Parts]]:
    """The valid files to start from, with the GGUF ones taken apart."""
    taken_apart = {
        "gguf": lambda: [parts() for parts in tiny.GGUF_PARTS.values()],
        "gguf-vocabulary": vocabularies.gguf_vocabularies,
        "imatrix": lambda: [tiny.imatrix_parts()],
    }.get(layout, list)()
    found = [(sample, dict[str, GgufParts]()) for sample in FORMATS[layout][0]()]
    for (_, parts), one in zip(found, taken_apart, strict=False):
        parts["model.gguf"] = one
    return found


def job(layout: str, seed: int, count: int) -> Job:
    """The work on one kind of file."""
    return Job(layout, seed, count, samples_of(layout), FORMATS[layout][1])


FORMATS: dict[str, tuple[Callable[[], list[Sample]], str]] = {
    **{name: (samples, "tests.formats.fuzz:open_and_touch") for name, samples in tiny.LAYOUTS.items()},
    **{name: (samples, "tests.tokenizer.tiny:use") for name, samples in vocabularies.VOCABULARIES.items()},
    "imatrix": (tiny.imatrix, "tests.formats.fuzz:read_importance"),
}
"""Kind of file -> the valid ones, and the function under test."""


def fuzz(job: Job, n_workers: int = 2, progress: Callable[[int], None] = lambda done: None) -> Report:
    """Run mutations 0 to count - 1."""
    begun = time.monotonic()
    report = Report(job.layout, job.count, job.seed)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        posts = [Post(job, Path(folder), n, n_workers) for n in range(n_workers)]
        try:
            while [post for post in posts if post.watch()]:
                progress(sum(sum(post.read()[1]) for post in posts))
                time.sleep(0.1)
        finally:
            for post in posts:
                post.process.kill()
        totals = np.sum([post.read()[1] for post in posts], axis=0)
        report.outcomes = {name: int(n) for name, n in zip(OUTCOMES, totals, strict=True) if n}
        failures: dict[tuple[str, str, str], Failure] = {}
        for post in posts:
            told = [Failure(**m["failure"]) for m in post.messages() if "failure" in m]
            for failure in [*post.lost, *told]:
                key = (failure.kind, failure.what.split(":")[0], failure.where)
                if key in failures:
                    failures[key].count += 1
                else:
                    failures[key] = failure
            for message in post.messages():
                report.slowest_cpu_s = max(report.slowest_cpu_s, message.get("slowest_cpu_s", 0))
                report.peak_growth_bytes = max(report.peak_growth_bytes, message.get("peak_growth_bytes", 0))
        report.failures = sorted(failures.values(), key=lambda failure: -failure.count)
    report.seconds = round(time.monotonic() - begun, 2)
    report.per_second = round(job.count / report.seconds, 1)
    return report


def only(layout: str, seed: int, index: int) -> None:
    """One mutation again, here, with its traceback; its files stay for a look."""
    worker = Worker(job(layout, seed, index + 1), Path(tempfile.mkdtemp()))
    i, changed = worker.damaged(index)
    for name, data in changed.items():
        (worker.folder / str(i) / name).unlink()
        if data is not None:
            (worker.folder / str(i) / name).write_bytes(data)
    path = worker.folder / str(i) / worker.samples[i][0].entry
    print(f"{path}, changed: {', '.join(changed)}")
    worker.target(path)
    print("a model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, metavar="INDEX")
    options = parser.parse_args()
    if options.only is not None:
        only(options.format, options.seed, options.only)
        return 0
    from rich.console import Console
    from rich.progress import Progress

    clean = True
    with Progress(console=Console(stderr=True)) as bar:
        for layout in FORMATS if options.format == "all" else [options.format]:
            task = bar.add_task(layout, total=options.count)
            report = fuzz(
                job(layout, options.seed, options.count),
                options.jobs,
                lambda done, task=task: bar.update(task, completed=done),
            )  # type: ignore[misc]
            bar.update(task, completed=options.count)
            print(json.dumps(asdict(report), indent=1), flush=True)
            clean = clean and report.clean
    return 0 if clean else 1


if __name__ == "__main__":
    from tests.formats import fuzz as importable  # workers unpickle a Job by its module, which __main__ is not

    sys.exit(importable.main())
