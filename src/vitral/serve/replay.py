"""Run a record again and say EXACT, or the first step that differs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitral.engine.adapters import LoadedAdapter
from vitral.engine.digest import logits_digest
from vitral.engine.interventions import Intervention
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import RequestError
from vitral.language_model import LanguageModel
from vitral.lens.evidence import interventions_of
from vitral.model.law import F32
from vitral.serve.constraints import constraint_from
from vitral.serve.engines import Ask, Digest, Ended, EngineEvent, Token
from vitral.serve.models import Model
from vitral.serve.records import params_from
from vitral.serve.run import salt_of

__all__ = ["Difference", "Report", "Step", "environment", "jobs_of", "replay_here", "replay_on", "report"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of an answer was: its token, and the digest of the logits it came from ("" if not known)."""

    token: int
    digest: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step (from 0) of a sequence where the replay went another way."""

    sequence: int
    step: int
    what: Literal["token", "logits", "length"]
    recorded: str
    found: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome. environment: what is another than then, though it need not change a bit."""

    record: str
    exact: bool
    steps: int
    difference: Difference | None
    environment: dict[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        return "EXACT" if self.exact else "DIFFERENT"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        d = self.difference
        return {
            "record": self.record,
            "verdict": self.verdict,
            "steps": self.steps,
            "first_difference": None
            if d is None
            else {"sequence": d.sequence, "step": d.step, "what": d.what, "recorded": d.recorded, "found": d.found},
            "environment": {name: {"recorded": then, "now": now} for name, (then, now) in self.environment.items()},
        }


@dataclass(frozen=True, slots=True)
class Replayable:
    """One sequence of a record, ready to run again."""

    prompt: tuple[int, ...]
    params: SamplingParams
    constraint: str | None
    steps: tuple[Step, ...]
    interventions: tuple[Intervention, ...] = ()


def jobs_of(record: Mapping[str, Any]) -> list[Replayable]:
    """The sequences of a record. RequestError says why one cannot be run again."""
    if record.get("erased"):
        raise RequestError(f"the body of record {record['id']} was removed by retention; only its digest is left")
    if why := record.get("not_replayable"):
        raise RequestError(f"record {record['id']} cannot be run again: {why}")
    found = []
    changes = interventions_of(record)
    for sequence in record["sequences"]:
        if "ids" not in sequence["prompt"]:
            raise RequestError(f"record {record['id']} holds no token ids, so it cannot be run again")
        answer = sequence["answer"]["ids"]
        digests = sequence["logits"] or [""] * len(answer)
        try:
            params = replace(params_from(sequence["parameters"]), max_tokens=len(answer))
            steps = tuple(Step(token, digest) for token, digest in zip(answer, digests, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"record {record['id']} cannot be run again: {type(error).__name__}: {error}; give one that Vitral wrote"
            ) from None
        found.append(Replayable(tuple(sequence["prompt"]["ids"]), params, sequence["constraint"], steps, changes))
    if not any(each.steps for each in found):
        raise RequestError(f"record {record['id']} has no generated token, so there is nothing to compare")
    return found


async def replay_on(model: Model, record: Mapping[str, Any], tenant: str) -> Report:
    """Run a record on a served model, beside whatever else runs there."""
    model.need("replay", "replay of a record")
    async with model.place.used():
        return await _replayed(model, record, tenant)


async def _replayed(model: Model, record: Mapping[str, Any], tenant: str) -> Report:
    outcome = []
    for job in jobs_of(record):
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        ask = Ask(
            job.prompt,
            job.params,
            tenant,
            salt_of(tenant) + b"replay",  # computed anew, and nobody times what another tenant replayed
            digests=True,
            constraint=job.constraint,
            adapter=model.adapter,
            interventions=job.interventions,
        )
        number = model.engine.submit(ask, events.put_nowait)
        tokens: list[int] = []
        digests: list[str] = []
        try:
            while not isinstance(event := await events.get(), Ended):
                if isinstance(event, Token):
                    tokens.append(event.token)
                elif isinstance(event, Digest):
                    digests.append(event.digest)
        finally:
            model.engine.cancel(number)
        if event.error is not None:
            raise event.error
        steps = [Step(token, digest) for token, digest in zip(tokens, digests, strict=True)]
        outcome.append((job.steps, steps))
    return report(record, outcome, environment(record, model.identity()))


def replay_here(
    loaded: LanguageModel, record: Mapping[str, Any], identity: Mapping[str, Any], adapter: LoadedAdapter | None = None
) -> Report:
    """Run a record on a model of this process, with the adapter that made it, if one did."""
    outcome = []
    for job in jobs_of(record):
        steps: list[Step] = []
        digests: list[str] = []
        constraint = None
        if job.constraint is not None:
            constraint = loaded.grammars.start(constraint_from(job.constraint), stop_ids=job.params.stop_ids)
        with loaded.engine.answer(
            job.prompt,
            job.params,
            on_choice=_keep(digests),
            constraint=constraint,
            adapter=adapter,
            interventions=job.interventions,
        ) as answer:
            for event in answer:
                if isinstance(event, NewToken):
                    steps.append(Step(event.token, digests[len(steps)]))  # a step may have chosen several
                elif isinstance(event, Finished) and event.error is not None:
                    raise event.error
        outcome.append((job.steps, steps))
    return report(record, outcome, environment(record, identity))


def report(
    record: Mapping[str, Any],
    outcome: Sequence[tuple[Sequence[Step], Sequence[Step]]],
    environment: dict[str, tuple[Any, Any]],
) -> Report:
    """Compare recorded steps with found ones."""
    difference = next(
        (d for i, (then, now) in enumerate(outcome) if (d := _difference(i, then, now)) is not None), None
    )
    steps = sum(len(then) for then, _ in outcome)
    return Report(record["id"], difference is None, steps, difference, environment)


def environment(record: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Parts of the model's identity that are not what the record says."""
    then = record["model"]
    return {name: (then.get(name), now.get(name)) for name in sorted({*then, *now}) if then.get(name) != now.get(name)}


def _keep(digests: list[str]) -> Callable[[int, F32], None]:
    def keep(position: int, row: F32) -> None:
        digests.append(logits_digest(row))

    return keep


def _difference(index: int, then: Sequence[Step], now: Sequence[Step]) -> Difference | None:
    for step, (a, b) in enumerate(zip(then, now, strict=False)):
        if a.digest and a.digest != b.digest:
            return Difference(index, step, "logits", a.digest, b.digest)
        if a.token != b.token:
            return Difference(index, step, "token", str(a.token), str(b.token))
    if len(then) != len(now):
        return Difference(index, min(len(then), len(now)), "length", str(len(then)), str(len(now)))
    return None
