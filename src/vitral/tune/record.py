"""The training record: all that decided a run, so that it can be replayed, and what came out."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vitral.errors import TuneError
from vitral.formats.canonical import Checkpoint
from vitral.formats.json_text import read_object
from vitral.provenance.lineage import licence_of, lineage_metadata
from vitral.tune.files import write_whole
from vitral.tune.prepare import Prepared

__all__ = ["ADAPTER", "LOG", "MODEL", "RECORD", "begin_record", "check_same", "read_log", "read_record", "tuned_from"]
__all__ += ["base_facts", "environment", "write_record"]

RECORD, LOG = "record.json", "log.jsonl"
ADAPTER, MODEL = "adapter", "model"  # what a run leaves: one of the two
_DECIDES = ("recipe", "base_digest", "tokenizer_digest", "template_digest", "data", "precision", "processes")


def begin_record(prepared: Prepared, precision: str, processes: int, n_trained: int) -> dict[str, Any]:
    """What is known before the first step."""
    base = prepared.base
    files = dict.fromkeys([*prepared.train.files, *(prepared.test.files if prepared.test is not None else [])])
    data = [{key: value for key, value in asdict(file).items() if value} for file in files]
    licences = list(dict.fromkeys(file.licence for file in files))
    return {
        "recipe": json.loads(json.dumps(asdict(prepared.recipe))),
        **base_facts(base),
        "base_layout": base.layout,
        "tokenizer_digest": prepared.tokenizer.digest,
        "template_digest": prepared.tokenizer.template_digest,
        "data": sorted(data, key=lambda each: each["path"]),
        "data_licence": prepared.recipe.data.licence or (" AND ".join(licences) if all(licences) else ""),
        "items": {"train": len(prepared.train.items), "test": len(prepared.test.items) if prepared.test else 0},
        "steps": prepared.n_steps,
        "trained_parameters": n_trained,
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "estimate": asdict(prepared.estimate) | {"total_bytes": prepared.estimate.total_bytes},
    }


def base_facts(base: Checkpoint) -> dict[str, Any]:
    """What an adapter says of its base, so that another is refused (`vitral.provenance.bases`); reads all weights."""
    return {
        "base": str(base.path),
        "base_digest": base.weights.digest(),
        "base_vectors": base.weights.vectors_digest(),
        "base_types": list(base.weights.matrix_types()),
        "base_licence": licence_of(base),
    }


def environment() -> dict[str, Any]:
    """What may change the bits of a run without being part of it: versions and the vector unit that torch uses."""
    versions = {f"versions.{name}": value for name, value in _versions().items()}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("vitral", "torch", "numpy")} | {"python": platform.python_version()}


def tuned_from(base: Checkpoint, record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a model tuned from `base` carries: its base, its data with their licence, and how it was tuned."""
    data = [_data_entry(each, record["data_licence"]) for each in record["data"]]
    method = record["recipe"]["method"]
    how = {name: method[name] for name in ("loss", "tune")} | {"steps": record["steps"]}
    return lineage_metadata(base, "tune", how, digest=record["base_digest"], data=data)


def _data_entry(file: Mapping[str, str], licence: str) -> dict[str, str]:
    """A file of data as lineage names it; a licence of its own goes before that of all."""
    found = {"name": file.get("name") or Path(file["path"]).name, "sha256": file["sha256"]}
    own = file.get("licence") or licence
    return found | ({"licence": own} if own else {}) | ({"source": file["path"]} if file.get("name") else {})


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], otherwise: str) -> None:
    """Raise TuneError if what decides the run has changed since it began; the message names what.

    `otherwise` says what it would be then, and what to do besides putting it back.
    """
    changed = [name for name in _DECIDES if before.get(name) != now.get(name)]
    if "data" in changed:
        then, files = ({each["path"]: each["sha256"] for each in record["data"]} for record in (before, now))
        paths = [path for path in dict.fromkeys([*then, *files]) if then.get(path) != files.get(path)]
        changed[changed.index("data")] = f"data ({', '.join(paths)})" if paths else "data"
    if changed:
        raise TuneError(f"{', '.join(changed)} changed since this run began, so it would {otherwise}")


def write_record(folder: Path, record: Mapping[str, Any], then: str) -> None:
    """Write the record whole, or leave the one before and raise TuneError; `then` says what to do."""
    write_whole(folder / RECORD, json.dumps(dict(record), indent=2, default=str) + "\n", then)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run. Raises TuneError where there is none."""
    if not (folder / RECORD).is_file():
        raise TuneError(f"{folder} is no run: it has no {RECORD}; start one with vitral tune run RECIPE --out {folder}")
    return dict(read_object(folder / RECORD))


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log: one object for each step and evaluation. A last line that was cut off does not count."""
    with (folder / LOG).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
