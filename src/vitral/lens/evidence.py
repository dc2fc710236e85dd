"""Evidence: values computed from a record by replaying it, in one document that shows every change.

    envelope (DSSE) > statement (in-toto) > predicate: record, analysis, values, controls, digests

`digests` has the SHA-256 of each part under its place, a JSON pointer into the predicate: who changes a byte without
the key is found, and the place is named. Who changes value and digest and signs anew is found when the answer is run
again. docs/reference/evidence.md explains the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vitral.engine.interventions import Intervention, digest, from_document
from vitral.errors import FormatError, RequestError
from vitral.formats.json_text import parse_object
from vitral.lens.analysis import Analysis, LawView, analyse
from vitral.lens.envelope import Envelope, canonical, key_id, read_envelope, seal

__all__ = [
    "PREDICATE_TYPE",
    "Evidence",
    "Judgement",
    "compare",
    "digests_of",
    "first_difference",
    "interventions_of",
    "is_evidence",
    "make",
    "missing_key",
    "read",
    "recompute",
    "statement_of",
]

PREDICATE_TYPE = "https://vitral/evidence/v1"
_STATEMENT = "https://in-toto.io/Statement/v1"
_CONTROLS = {
    "lens": "the logit of a token drawn by counter, at the same layer and step",
    "attention": "the share of each position if all were seen alike",
    "routes": "the share of each expert if all were chosen alike",
}
OnStep = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document that was read. `places`: what was changed in it since it was made, as far as it shows by itself."""

    envelope: Envelope
    record: dict[str, Any]
    analysis: Analysis
    values: list[Any]
    places: tuple[str, ...]

    def signed_by(self, key: Ed25519PublicKey) -> bool | None:
        """As `Envelope.fits`."""
        return self.envelope.fits(key)

    @property
    def key_ids(self) -> list[str]:
        """Of the keys that claim to have signed."""
        return [whose for whose, _ in self.envelope.signatures]


@dataclass(frozen=True, slots=True)
class Judgement:
    """EXACT: run again, every bit is there. CHANGED: the document is not as it was made. DIVERGED: run again, something
    came out otherwise. MISSING: what it needs is not here. `reasons` name the places, or what is missing.
    """

    verdict: Literal["EXACT", "CHANGED", "DIVERGED", "MISSING"]
    reasons: tuple[str, ...]
    record: str
    notes: tuple[str, ...] = ()


def make(
    glass: LawView,
    record: Mapping[str, Any],
    analysis: Analysis,
    key: Ed25519PrivateKey | None = None,
    on_step: OnStep | None = None,
) -> bytes:
    """Compute the values of a record and write the document. `on_step(done, all)` counts sequences.

    Raises RequestError if the record cannot be run again, or if its own digests are not what the law gives: there is
    no evidence for an answer that this model did not give.
    """
    record = dict(record)
    if broken := _broken_record(record):
        raise RequestError(f"the record is not what was written: {broken}")
    if not any(sequence["answer"].get("count") for sequence in record["sequences"]):
        raise RequestError(f"record {record['id']} has no generated token, so there is nothing to prove")
    values = recompute(glass, record, analysis, on_step)
    for index, (sequence, found) in enumerate(zip(record["sequences"], values, strict=True)):
        if sequence["logits"] and (difference := first_difference(sequence["logits"], found["logits"], "")):
            place, then, now = difference
            raise RequestError(
                f"the record's answer is not this model's: sequence {index} step {place[1:]} has logits {then}, "
                f"computed {now}; give the model that made it"
            )
    predicate = {
        "version": 1,
        "record": record,
        "analysis": analysis.to_json(),
        "values": values,
        "controls": _controls(analysis),
    }
    predicate["digests"] = digests_of(predicate)
    return seal(statement_of(predicate), key)


def recompute(
    glass: LawView, record: Mapping[str, Any], analysis: Analysis, on_step: OnStep | None = None
) -> list[dict[str, Any]]:
    """The values of every sequence of a record."""
    values = []
    sequences = record["sequences"]
    changes = interventions_of(record)
    for done, sequence in enumerate(sequences, 1):
        if "ids" not in sequence["prompt"] or "ids" not in sequence["answer"]:
            raise RequestError(f"record {record['id']} holds no token ids, so nothing can be computed from it")
        values.append(analyse(glass, sequence["prompt"]["ids"], sequence["answer"]["ids"], analysis, changes))
        if on_step is not None:
            on_step(done, len(sequences))
    return values


def interventions_of(record: Mapping[str, Any]) -> tuple[Intervention, ...]:
    """What changed the run of a record. RequestError if only its digest was kept, or if it is not what was written."""
    kept = record.get("interventions")
    if kept is None:
        return ()
    if not isinstance(kept, dict) or "document" not in kept:
        raise RequestError(
            f"record {record['id']} holds only the digest of its interventions, so it cannot be run again"
        )
    changes = from_document(kept["document"])
    if digest(changes) != kept.get("sha256"):
        raise RequestError(f"record {record['id']}: the interventions do not fit their digest")
    return changes


def is_evidence(path: Path) -> bool:
    """Whether a file looks like an envelope: an object whose end names its signatures. Nothing else is decided by it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(1) != b"{":
            return False
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        return b'"signatures"' in file.read()


def read(data: bytes, source: object) -> Evidence:
    """Take a document apart and look for changes. FormatError for what is no evidence at all."""
    envelope = read_envelope(data, source)
    statement = parse_object(envelope.payload, f"{source}: /payload")
    predicate = statement.get("predicate")
    if not isinstance(predicate, dict):
        raise FormatError(f"{source}: /predicate is missing; this is no evidence")
    wanted = {"version": int, "record": dict, "analysis": dict, "values": list, "controls": dict, "digests": dict}
    for name, kind in wanted.items():
        if type(predicate.get(name)) is not kind:
            raise FormatError(f"{source}: /predicate/{name} is missing, or is not of type {kind.__name__}")
    if predicate["version"] != 1:
        raise FormatError(f"{source}: /predicate/version is {predicate['version']}; this Vitral reads version 1")
    if strange := sorted(predicate.keys() - wanted.keys()):
        raise FormatError(f"{source}: /predicate has the unknown keys {', '.join(strange)}")
    try:
        analysis = Analysis.from_json(predicate["analysis"])
    except RequestError as error:
        raise FormatError(f"{source}: /predicate/analysis: {error}") from None
    places = [*envelope.places, *_changes(statement, predicate, analysis)]
    if envelope.payload != canonical(statement):
        places.append("/payload: not canonical JSON")
    return Evidence(envelope, predicate["record"], analysis, predicate["values"], tuple(places))


def first_difference(then: Any, now: Any, place: str) -> tuple[str, Any, Any] | None:
    """The first place, a JSON pointer behind `place`, where two plain values differ; types count.

    >>> first_difference({"a": [1, 2.5]}, {"a": [1, 2.0]}, "")
    ('/a/1', 2.5, 2.0)
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            if key not in then or key not in now:
                return f"{place}/{key}", then.get(key, "nothing"), now.get(key, "nothing")
            if (found := first_difference(then[key], now[key], f"{place}/{key}")) is not None:
                return found
        return None
    if isinstance(then, list) and isinstance(now, list):
        for i, (a, b) in enumerate(zip(then, now, strict=False)):
            if (found := first_difference(a, b, f"{place}/{i}")) is not None:
                return found
        return None if len(then) == len(now) else (f"{place}", f"{len(then)} entries", f"{len(now)} entries")
    number = isinstance(then, int | float) and isinstance(now, int | float)  # JSON knows one kind: 1.0 is written 1
    same = then == now and (number or type(then) is type(now)) and isinstance(then, bool) == isinstance(now, bool)
    return None if same else (place, then, now)


def statement_of(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The in-toto statement around a predicate; its subject is the record."""
    record = predicate["record"]
    digest = hashlib.sha256(canonical(_body(record))).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": record.get("id"), "digest": {"sha256": digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _changes(statement: Mapping[str, Any], predicate: Mapping[str, Any], analysis: Analysis) -> Iterator[str]:
    """Places where a document does not fit itself."""
    named, found = predicate["digests"], digests_of(predicate)
    for place in sorted({*named, *found}):
        if place not in named:
            yield f"{place}: has no digest"
        elif place not in found:
            yield f"/digests: names {place[:200]!r}, which is not there"
        elif named[place] != found[place]:
            yield f"{place}: not what was written, or its digest was changed"
    outer = {key: value for key, value in statement.items() if key != "predicate"}
    right = {key: value for key, value in statement_of(predicate).items() if key != "predicate"}
    if (difference := first_difference(outer, right, "")) is not None:
        place, then, now = difference
        yield f"{place} of the statement: {str(then)[:100]!r}; {str(now)[:100]!r} fits the record"
    if predicate["controls"] != _controls(analysis):
        yield "/controls: not those of the analysis"
    if broken := _broken_record(predicate["record"]):
        yield f"/record: {broken}"


def _broken_record(record: Mapping[str, Any]) -> str | None:
    """Why a record is not one that Vitral wrote, or None. One with its own digest must fit it."""
    missing = [name for name in ("id", "model", "sequences") if name not in record]
    if missing or not isinstance(record["sequences"], list) or not isinstance(record["model"], dict):
        return f"id, model or sequences is missing or of the wrong type ({', '.join(missing) or 'type'})"
    for index, sequence in enumerate(record["sequences"]):
        if not isinstance(sequence, dict) or not all(
            isinstance(sequence.get(name), kind)
            for name, kind in (("prompt", dict), ("answer", dict), ("logits", list), ("parameters", dict))
        ):
            return f"sequence {index} lacks prompt, answer, logits or parameters"
        for name in ("prompt", "answer"):
            ids = sequence[name].get("ids")
            if ids is not None and not (isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)):
                return f"sequence {index}: {name} ids are not numbers from 0"
        steps, digests = len(sequence["answer"].get("ids") or ()), len(sequence["logits"])
        if digests and "ids" in sequence["answer"] and steps != digests:
            return f"sequence {index} has {steps} tokens and {digests} digests of logits"
    if "digest" in record and hashlib.sha256(canonical(_body(record))).hexdigest() != record["digest"]:
        return "its bytes do not fit its digest"
    return None


def _body(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "digest"}


def _controls(analysis: Analysis) -> dict[str, str]:
    return {name: text for name, text in _CONTROLS.items() if getattr(analysis, name)}


def digests_of(predicate: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the canonical bytes of each part, by its place."""
    return {place: hashlib.sha256(canonical(part)).hexdigest() for place, part in _parts(predicate)}


def _parts(predicate: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("analysis", "controls"):
        yield f"/{name}", predicate[name]
    record, values = predicate["record"], predicate["values"]
    for name, part in record.items():
        if name == "sequences" and isinstance(part, list):
            yield "/record/sequences", len(part)
            for index, sequence in enumerate(part):
                yield from _entries(f"/record/sequences/{index}", sequence)
        else:
            yield f"/record/{name}", part
    yield "/values", len(values)
    for index, found in enumerate(values):
        for place, part in _entries(f"/values/{index}", found):
            if isinstance(part, list) and part and isinstance(part[0], dict):
                yield place, len(part)
                for layer, each in enumerate(part):
                    yield f"{place}/{layer}", each
            else:
                yield place, part


def _entries(place: str, part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        for name, each in part.items():
            yield f"{place}/{name}", each
    else:
        yield place, part


def compare(evidence: Evidence, found: Sequence[Mapping[str, Any]]) -> str | None:
    """Where the values that were computed now are not those of the document, in words; None if nowhere."""
    difference = first_difference(evidence.values, list(found), "/values")
    if difference is None:
        return None
    place, then, now = difference
    parts = place.split("/")
    step = f"step {parts[parts.index('steps') + 1]}" if "steps" in parts[:-1] else ""
    if len(parts) > 4 and parts[3] == "logits":
        step = f"step {parts[4]}"
    return f"at {step + ' ' if step else ''}value {place}: {then} in the document, {now} here"


def missing_key(evidence: Evidence, key: Ed25519PublicKey | None) -> tuple[str | None, bool]:
    """What is missing for trust in the signature, or None; and whether the signature is broken."""
    if key is None:
        if evidence.key_ids:
            return f"the public key with id {evidence.key_ids[0][:64]}: give it with --key", False
        return None, False
    fits = evidence.signed_by(key)
    if fits is None:
        signed = f"signed by key {evidence.key_ids[0][:64]}" if evidence.key_ids else "not signed"
        return f"a signature of the key {key_id(key)}: the document is {signed}", False
    return None, not fits
