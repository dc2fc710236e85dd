"""Where an artefact of ours comes from, written into it and read back.

GGUF and safetensors have conventions for this: `general.source.*` and `general.base_model.*` (ggml's `docs/gguf.md`),
`base_model` and `base_model_relation` in model cards. They name; they do not prove. Beside them stands ours, one
text `vitral.lineage`: a list of steps, the first one first, each with the digest of the weights it began from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitral.errors import FormatError
from vitral.formats.canonical import Checkpoint
from vitral.formats.metadata_text import first_text
from vitral.formats.safetensors import read_notes
from vitral.version import version

__all__ = ["KEY", "Step", "lineage_metadata", "read_lineage"]

KEY = "vitral.lineage"
_LONGEST = 1 << 20  # characters
_MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done: `operation` (convert, quantise, merge, tune), by `tool`, with `parameters`.

    `base` has what it was done to, one for each parent: `name`, `weights` (the digest of `vitral digest --weights`),
    `layout`, `source` (where it was fetched from) and `licence`, whichever of them are known.
    """

    operation: str
    tool: str
    base: tuple[Mapping[str, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def read_lineage(checkpoint: Checkpoint) -> tuple[Step, ...]:
    """The steps that a model records, the first one first; empty for a model that records none.

    Raises FormatError for a record that cannot be read.
    """
    text = checkpoint.metadata.get(KEY)
    if checkpoint.layout == "safetensors":
        text = read_notes(checkpoint.path).get(KEY)
    if text is None:
        return ()
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError
        steps = tuple(
            Step(str(one["operation"]), str(one["tool"]), tuple(map(dict, one["base"])), dict(one["parameters"]))
            for one in json.loads(text)
        )
        if len(steps) > _MOST_STEPS:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{checkpoint.path}: {KEY} is no list of steps as Vitral writes it") from None
    return steps


def lineage_metadata(
    checkpoint: Checkpoint,
    operation: str,
    parameters: Mapping[str, Any],
    source: str | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """Keys for an artefact made from `checkpoint`: the field's conventions, and ours.

    `source` is where the base came from, such as `hf:owner/name`; `digest` the digest of its weights, which is
    computed if it is not given: that reads them all.
    """
    metadata = checkpoint.metadata
    name = first_text(metadata, "general.name", "_name_or_path") or checkpoint.path.stem
    licence = first_text(metadata, "general.license", "license")
    base = {"name": name, "weights": digest or checkpoint.weights.digest(), "layout": checkpoint.layout}
    base |= {key: value for key, value in (("source", source), ("licence", licence)) if isinstance(value, str)}
    step = Step(operation, f"vitral {version()}", (base,), dict(parameters))
    found: dict[str, Any] = {KEY: _text((*read_lineage(checkpoint), step))}
    if "general.base_model.count" not in metadata:
        found |= {"general.base_model.count": 1, "general.base_model.0.name": name}
        if source is not None and source.startswith("hf:"):
            owner_name = source.removeprefix("hf:").partition("@")[0].partition(":")[0]
            url = f"https://huggingface.co/{owner_name}"
            found |= {"general.base_model.0.repo_url": url, "general.source.repo_url": url}
    return found


def _text(steps: tuple[Step, ...]) -> str:
    return json.dumps([asdict(step) for step in steps], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
