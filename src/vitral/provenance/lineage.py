"""Where an artefact of ours comes from, written into it and read back.

GGUF and safetensors have conventions for this: `general.source.*` and `general.base_model.*` (ggml's `docs/gguf.md`),
`base_model` and `base_model_relation` in model cards. They name; they do not prove. Beside them stands ours, one
text `vitral.lineage`: a list of steps, the first one first, each with the digest of the weights it began from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitral.errors import FormatError
from vitral.formats.canonical import Checkpoint
from vitral.formats.metadata_text import first_text
from vitral.formats.safetensors import read_notes
from vitral.provenance.card import read_card
from vitral.provenance.detect import of_text
from vitral.version import version

__all__ = ["KEY", "Step", "licence_of", "licence_beside", "lineage_metadata", "read_lineage", "steps_in"]

KEY = "vitral.lineage"
_LONGEST = 1 << 20  # characters
_MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done: `operation` (convert, quantise, merge, upcycle, tune), by `tool`, with `parameters`.

    `base` has what it was done to, one for each parent: `name`, `weights` (the digest of `vitral digest --weights`),
    `layout`, `source` (where it was fetched from) and `licence`, whichever of them are known. `data` has the files that
    it was trained on: `name`, `sha256`, `licence`, and `source` where it was fetched.
    """

    operation: str
    tool: str
    base: tuple[Mapping[str, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[Mapping[str, str], ...] = ()


def read_lineage(checkpoint: Checkpoint) -> tuple[Step, ...]:
    """The steps that a model records, the first one first; empty for a model that records none.

    Raises FormatError for a record that cannot be read.
    """
    text = checkpoint.metadata.get(KEY)
    if checkpoint.layout == "safetensors":
        text = read_notes(checkpoint.path).get(KEY)
    return steps_in(text, checkpoint.path)


def steps_in(text: object, where: Path) -> tuple[Step, ...]:
    """The steps that a text under KEY holds, empty for None; FormatError, which names `where`, for anything else."""
    if text is None:
        return ()
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError
        steps = tuple(
            Step(
                str(one["operation"]),
                str(one["tool"]),
                _texts_of(one["base"]),
                dict(one["parameters"]),
                _texts_of(one.get("data", ())),
            )
            for one in json.loads(text)
        )
        if len(steps) > _MOST_STEPS:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise FormatError(f"{where}: {KEY} is no list of steps as Vitral writes it") from None
    return steps


def _texts_of(entries: Any) -> tuple[dict[str, str], ...]:
    return tuple({str(key): str(value) for key, value in entry.items()} for entry in entries)


def lineage_metadata(
    checkpoint: Checkpoint,
    operation: str,
    parameters: Mapping[str, Any],
    source: str | None = None,
    digest: str | None = None,
    others: Sequence[Checkpoint] = (),
    data: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Keys for an artefact made from `checkpoint` (and `others`, for a merge): the field's conventions, and ours.

    `source` is where the base came from, such as `hf:owner/name`; `digest` the digest of its weights, which is
    computed if it is not given: that reads them all. `data` is what it was trained on, as in `Step`. Where no key
    says under which licence a parent stands, what its card says is written down, or the LICENSE beside it.
    """
    metadata = checkpoint.metadata
    base = _parent(checkpoint, digest) | ({"source": source} if source is not None else {})
    name = base["name"]
    step = Step(
        operation,
        f"vitral {version()}",
        (base, *(_parent(other, None) for other in others)),
        dict(parameters),
        tuple(data),
    )
    found: dict[str, Any] = {KEY: _text((*read_lineage(checkpoint), step))}
    licences = [parent.get("licence", "") for parent in step.base]
    if all(licences):
        found["general.license"] = " AND ".join(dict.fromkeys(licences))
    if "general.base_model.count" not in metadata:
        found |= {"general.base_model.count": 1, "general.base_model.0.name": name}
        if source is not None and source.startswith("hf:"):
            owner_name = source.removeprefix("hf:").partition("@")[0].partition(":")[0]
            url = f"https://huggingface.co/{owner_name}"
            found |= {"general.base_model.0.repo_url": url, "general.source.repo_url": url}
    return found


def _parent(checkpoint: Checkpoint, digest: str | None) -> dict[str, str]:
    name = first_text(checkpoint.metadata, "general.name", "_name_or_path") or checkpoint.path.stem
    found = {"name": name, "weights": digest or checkpoint.weights.digest(), "layout": checkpoint.layout}
    licence = licence_of(checkpoint)
    return found | ({"licence": licence} if licence else {})


def licence_of(checkpoint: Checkpoint) -> str:
    """What a model says of its licence: in its own keys, on its card, or by the LICENSE beside it; "" for nothing."""
    notes = read_notes(checkpoint.path) if checkpoint.layout == "safetensors" else {}
    keys = ("general.license", "license")
    return first_text(checkpoint.metadata, *keys) or first_text(notes, *keys) or licence_beside(checkpoint.path)


def licence_beside(path: Path) -> str:
    """What the card in a folder says, else which licence the text in its LICENSE is; "" where neither says one."""
    if not path.is_dir():
        return ""
    card, text = path / "README.md", path / "LICENSE"
    try:
        facts = read_card(card)[0] if card.is_file() else {}
    except FormatError:
        facts = {}  # a card that cannot be read says nothing; `licence check` says why
    label = facts.get("license")
    if label == "other":
        label = facts.get("license_name")
    labels = [one for one in (label if isinstance(label, list) else [label]) if isinstance(one, str)]
    if labels or not text.is_file():
        return " AND ".join(labels)
    found = of_text(text.read_text("utf-8", "replace"), text.name, is_licence=True)
    return " AND ".join(id for item in found if not item.doubtful for id in item.licences)


def _text(steps: tuple[Step, ...]) -> str:
    entries = [
        {"operation": step.operation, "tool": step.tool, "base": step.base, "parameters": step.parameters}
        | ({"data": step.data} if step.data else {})
        for step in steps
    ]
    return json.dumps(entries, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
