"""A run done again from its record, and its losses compared to the bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitral.errors import TuneError
from vitral.tune import distributed
from vitral.tune.recipe import parse_recipe
from vitral.tune.record import environment, read_log, read_record
from vitral.tune.run import Event, run_recipe
from vitral.tune.trainer import StepReport

__all__ = ["Difference", "Replay", "replay_run"]

_COMPARED = ("loss", "gradient_norm")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step, from 1, whose `what` (`loss` or `gradient_norm`) has other bits than its record."""

    step: int
    what: str
    recorded: float
    found: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found: the steps that were compared, the first that differs, and what is not as it was.

    `environment` has what a record names beside that which decides a run: its value then and now, where they differ
    (`versions.torch`, `cpu` ...). Bits are promised for equal values, on one thread.
    """

    steps: int
    difference: Difference | None
    threads: int
    environment: dict[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        """EXACT or DIFFERENT."""
        return "EXACT" if self.difference is None else "DIFFERENT"


class _Enough(Exception):
    """All that was recorded is done again, or a step differs."""


def replay_run(folder: Path, on_event: Callable[[Event], object] = lambda event: None) -> Replay:
    """Train again as the record in `folder` says, on as many threads, up to its last step or the first that differs.

    The record's folder is only read. Raises TuneError for no record, no step in the log, several processes, and,
    before the first step, for a base, data, tokenizer or template whose digest is no longer the recorded one; and
    what `run_recipe` raises.
    """
    record = read_record(folder)
    logged = [line for line in read_log(folder) if line["event"] == StepReport.__name__]
    if not logged:
        raise TuneError(f"{folder} has no step in its log, so there is nothing to replay; run it first")
    if record["processes"] > 1 or distributed.world_size() > 1:
        raise TuneError(
            f"the run had {record['processes']} processes; a replay is of a run of one, in one process, without torchrun"
        )
    done, difference = 0, None

    def compare(event: Event) -> None:
        nonlocal done, difference
        on_event(event)
        if isinstance(event, StepReport):
            then = logged[done]
            done += 1
            what = next((name for name in _COMPARED if getattr(event, name) != then[name]), None)
            if what is not None:
                difference = Difference(event.step, what, then[what], getattr(event, what))
            if what is not None or done == len(logged):
                raise _Enough

    threads = torch.get_num_threads()
    torch.set_num_threads(record["threads"])
    now = environment()
    try:
        with tempfile.TemporaryDirectory(prefix="vitral-replay-") as place:
            run_recipe(parse_recipe(record["recipe"]), Path(place) / "run", repeats=record, on_event=compare)
    except _Enough:
        pass
    finally:
        torch.set_num_threads(threads)
    then = {name: _at(record, name) for name in now}
    changed = {name: (then[name], now[name]) for name in now if then[name] != now[name]}
    return Replay(done, difference, record["threads"], changed)


def _at(record: dict[str, Any], name: str) -> Any:
    part, _, key = name.partition(".")
    found = record.get(part)
    return found.get(key) if key and isinstance(found, dict) else found
