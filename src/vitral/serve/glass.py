"""What a request may say of the forward pass: what to show of it, and what to change. And how readings are written."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vitral.engine.interventions import Intervention, from_document
from vitral.engine.observe import Watch
from vitral.errors import RequestError
from vitral.serve.body import Body
from vitral.serve.faults import ApiError
from vitral.serve.observed import LIGHT
from vitral.serve.run import Progress

__all__ = ["GlassBody", "InspectBody", "WatchBody", "changes", "document", "readings", "watches"]

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Counts = Annotated[list[Count], Field(min_length=1, max_length=4096)]
Written = Literal["lists", "base64"]
_EVERY_BLOCK = "blocks.*."


class WatchBody(Body):
    """What to record. taps: full names, or patterns with `*`; layers: for patterns that begin with `blocks.*.`.

    positions: "all", "prompt", "answer" (those after which its tokens were chosen), or numbers; negative ones count
    back from the end of the prompt. heads, columns, top: as `vitral.engine.observe.Watch`.
    """

    taps: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=64)]
    positions: (
        Literal["all", "prompt", "answer"]
        | Annotated[list[Annotated[int, Field(gt=-(1 << 31), lt=1 << 31)]], Field(min_length=1, max_length=4096)]
    ) = "all"
    layers: Counts | None = None
    heads: Counts | None = None
    columns: Counts | None = None
    top: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None

    def watch(self, n_prompt: int, label: str) -> Watch:
        """For the engine; RequestError for what does not fit together."""
        names = self.taps
        if self.layers is not None:
            wrong = next((name for name in names if not name.startswith(_EVERY_BLOCK)), None)
            if wrong is not None:
                raise RequestError(f"layers go with taps that begin with {_EVERY_BLOCK!r}; found {wrong!r:.60}")
            names = [f"blocks.{layer}.{name.removeprefix(_EVERY_BLOCK)}" for name in names for layer in self.layers]
        positions, since = None, 0
        if self.positions == "prompt":
            positions = tuple(range(n_prompt))
        elif self.positions == "answer":
            since = n_prompt - 1
        elif isinstance(self.positions, list):
            counted = {p if p >= 0 else n_prompt + p for p in self.positions}
            if min(counted) < 0:
                raise RequestError(f"positions has {min(self.positions)}; the prompt has {n_prompt} tokens")
            positions = tuple(sorted(counted))
        heads = None if self.heads is None else tuple(self.heads)
        columns = None if self.columns is None else tuple(self.columns)
        return Watch(tuple(names), positions, since, heads, columns, self.top, label)


class InspectBody(Body):
    """What to show of the forward pass with the answer. light: the light set of the answer's tokens.

    format: numbers as nested lists (null for what is not finite), or as base64 of little-endian bytes.
    """

    light: bool = False
    record: Annotated[list[WatchBody], Field(max_length=8)] = []
    format: Written = "lists"


class GlassBody(Body):
    """What every generating route may be asked to show and to change; ours."""

    inspect: InspectBody | None = None
    interventions: dict[str, Any] | None = None

    def looks(self, prompt: Sequence[int]) -> dict[str, Any]:
        """What a job of this prompt shows and changes, as arguments of `Job`; ApiError 400 says what is wrong."""
        inspect = self.inspect or InspectBody()
        return {
            "watch": watches(inspect.record, len(prompt), "inspect.record"),
            "light": len(prompt) - 1 if inspect.light else None,
            "interventions": changes(self.interventions),
        }

    def shown(self, progress: Progress) -> dict[str, Any]:
        """What an answer says besides if it was looked at: `inspect`."""
        return {} if self.inspect is None else {"inspect": document(progress, self.inspect.format)}


def watches(record: Sequence[WatchBody], n_prompt: int, where: str) -> tuple[Watch, ...]:
    """For the engine, each labelled with its number; ApiError 400 names the entry that is wrong."""
    found = []
    for i, one in enumerate(record):
        try:
            found.append(one.watch(n_prompt, f"{i}/"))
        except RequestError as error:
            raise ApiError(400, "invalid_value", f"{where}[{i}]: {error}", param=f"{where}[{i}]") from None
    return tuple(found)


def changes(document: Mapping[str, Any] | None) -> tuple[Intervention, ...]:
    """The interventions of a document; ApiError 400 for one that is not as it must be."""
    if document is None:
        return ()
    try:
        return from_document(document)
    except RequestError as error:
        raise ApiError(400, "invalid_value", f"interventions: {error}", param="interventions") from None


@dataclass(frozen=True, slots=True)
class Shown:
    """A reading as a client gets it: of which entry of `record`, or the part of the light set."""

    record: int | None
    name: str
    positions: NDArray[np.int64]
    values: NDArray[Any]


def readings(progress: Progress) -> Iterator[Shown]:
    """What was seen of a sequence, without what came after its end: the last token is not read any more."""
    end = len(progress.sequence.prompt) + max(0, len(progress.tokens) - 1)
    for seen in progress.seen:
        mine = seen.positions < end
        values = np.compress(mine, seen.values, axis=seen.axis)
        label, _, name = seen.name.partition("/")
        yield Shown(None if label + "/" == LIGHT else int(label), name, seen.positions[mine], values)


def document(progress: Progress, written: Written) -> dict[str, Any]:
    """All readings of a sequence as JSON."""
    light: dict[str, Any] = {}
    found = []
    for one in readings(progress):
        if one.record is None:
            light[one.name] = _written(one.values, written)
        else:
            positions = one.positions.tolist()
            found.append(
                {"record": one.record, "tap": one.name, "positions": positions, **_written(one.values, written)}
            )
    return {"readings": found, "light": light or None}


def _written(values: NDArray[Any], how: Written) -> dict[str, Any]:
    """Shape, type and numbers. In base64 float32 has the form that interventions take as values."""
    kind = values.dtype.name
    described: dict[str, Any] = {"shape": list(values.shape), "dtype": kind}
    if how == "base64":
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        return {**described, kind: base64.b64encode(data.tobytes()).decode()}
    return {**described, "values": _lists(values)}


def _lists(values: NDArray[Any]) -> Any:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        numbers = values.astype(object)
        numbers[~np.isfinite(values)] = None
        return numbers.tolist()
    return values.tolist()
