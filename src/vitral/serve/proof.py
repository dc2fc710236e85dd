"""Evidence on a machine: open the model that a record names, run the record again, judge a document."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import vitral
from vitral.engine.adapters import LoadedAdapter
from vitral.engine.digest import logits_digest
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import HubError, RequestError, VitralError
from vitral.formats.adapters import read_adapter
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.language_model import LanguageModel
from vitral.lens.analysis import LawView
from vitral.lens.evidence import Evidence, Judgement, compare, missing_key, read, recompute
from vitral.model.law import F32, KV_TYPES
from vitral.serve.records import ids_digest, new_id, params_to
from vitral.serve.replay import replay_here
from vitral.serve.worker import identity_of

__all__ = ["Opened", "judge", "judge_on", "opened", "record_here"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model of this process, twice: the engine that answers, and the law's view of the same weights."""

    loaded: LanguageModel
    glass: LawView
    identity: Mapping[str, Any]
    adapter: LoadedAdapter | None


@contextmanager
def opened(
    name: str, kv_type: str, *, adapter: Path | None = None, threads: int | None = None, isa: str | None = None
) -> Iterator[Opened]:
    """Load a model, and an adapter over it."""
    if kv_type not in KV_TYPES:
        raise RequestError(f"the record's kv_type is {kv_type!r:.40}; allowed: {', '.join(KV_TYPES)}")
    with vitral.load(name, threads=threads, kv_type=kv_type, isa=isa) as loaded:
        identity = {"name": name, "adapter": None, **identity_of(loaded, name, kv_type)}
        parts, held = None, None
        if adapter is not None:
            identity["adapter"] = loaded.load_adapter("adapter", adapter)
            held = loaded.adapter("adapter")
            parts = read_adapter(adapter, loaded.spec).parts
        weights = open_checkpoint(resolve(name)).weights.law()
        glass = LawView(loaded.spec, weights, loaded.context_length, kv_type, parts)
        yield Opened(loaded, glass, identity, held)


def record_here(on: Opened, prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
    """Answer a prompt on this machine and write its record; `params` has a seed and max_tokens."""
    tokens: list[int] = []
    digests: list[str] = []
    finish = "cancelled"

    def keep(position: int, row: F32) -> None:
        digests.append(logits_digest(row))

    with on.loaded.engine.answer(prompt, params, on_choice=keep, adapter=on.adapter) as answer:
        for event in answer:
            if isinstance(event, NewToken):
                tokens.append(event.token)
            elif isinstance(event, Finished):
                finish = event.reason
                if event.error is not None:
                    raise event.error

    def ids(of: Sequence[int]) -> dict[str, Any]:
        return {"count": len(of), "sha256": ids_digest(of), "ids": list(of)}

    sequence = {"parameters": params_to(params), "constraint": None, "prompt": ids(prompt), "answer": ids(tokens),
                "logits": digests, "cached": 0, "finish": finish}  # fmt: skip
    return {
        "version": 1,
        "id": new_id("rec"),
        "created": int(time.time()),
        "tenant": "local",
        "route": "local",
        "model": dict(on.identity),
        "sequences": [sequence],
    }


def judge(
    data: bytes,
    source: object,
    *,
    key: Ed25519PublicKey | None = None,
    model: str | None = None,
    adapter: Path | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> Judgement:
    """Judge a document on this machine. `model` instead of the name in its record; `adapter` that made the answer.

    FormatError for bytes that are no evidence at all.
    """
    evidence = read(data, source)
    if (changed := _changed(evidence, key)) is not None:
        return changed
    record = evidence.record
    then = record["model"]
    kernels = then.get("kernels")
    if not isinstance(kernels, dict) or not isinstance(then.get("name"), str):
        raise RequestError(f"{source}: the record's model lacks name or kernels; give one that Vitral wrote")
    name = model or then["name"]
    missing = []
    try:
        digest = open_checkpoint(resolve(name)).weights.digest()
    except HubError as error:
        return Judgement("MISSING", (f"the model: {error}; say where it is with --model",), record["id"])
    if digest != then.get("weights"):
        missing.append(f"weights with the digest {then.get('weights')}; those of {name} are {digest}")
    if then.get("adapter") is not None and adapter is None:
        missing.append(f"the adapter with the digest {then['adapter']}; say where it is with --adapter")
    if missing:
        return Judgement("MISSING", tuple(missing), record["id"])
    with opened(
        name, str(kernels.get("kv_type")), adapter=adapter if then.get("adapter") else None, threads=threads, isa=isa
    ) as on:
        return judge_on(on, evidence, key)


def judge_on(on: Opened, evidence: Evidence, key: Ed25519PublicKey | None = None) -> Judgement:
    """Judge a document on a model that is open."""
    if (changed := _changed(evidence, key)) is not None:
        return changed
    record, id = evidence.record, str(evidence.record["id"])
    for part in ("weights", "adapter"):
        if record["model"].get(part) != on.identity[part]:
            reason = f"{part} with the digest {record['model'].get(part)}; here: {on.identity[part]}"
            return Judgement("MISSING", (reason,), id)
    try:
        report = replay_here(on.loaded, record, {**on.identity, "name": record["model"].get("name")}, on.adapter)
        where = None
        if (d := report.difference) is not None:
            where = f"at sequence {d.sequence} step {d.step} value {d.what}: {d.recorded} in the record, {d.found} here"
        else:
            where = compare(evidence, recompute(on.glass, record, evidence.analysis))
    except VitralError as error:
        return Judgement("DIVERGED", (f"the record cannot be run again: {error}",), id)
    notes = tuple(f"{name} was {then}, is {now} here" for name, (then, now) in report.environment.items())
    if not evidence.key_ids:
        notes += ("not signed: whoever changed it all and made it anew is not found",)
    if where is not None:
        return Judgement("DIVERGED", (where,), id, notes)
    missing, _ = missing_key(evidence, key)
    if missing is not None:
        return Judgement(
            "MISSING", (missing, f"run again, all {report.steps} steps and all values are exact"), id, notes
        )
    return Judgement("EXACT", (f"{report.steps} steps and all values are there to the bit",), id, notes)


def _changed(evidence: Evidence, key: Ed25519PublicKey | None) -> Judgement | None:
    places = list(evidence.places)
    _, broken = missing_key(evidence, key)
    if broken:
        places.append("/signatures: the signature does not fit the payload")
    return Judgement("CHANGED", tuple(places), str(evidence.record.get("id"))) if places else None
