"""What can be done with a finished run: export it in any form, with the share of the tuning that is kept; compare runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vitral.conversion import tokenizer_files
from vitral.errors import TuneError
from vitral.formats.adapters import read_adapter
from vitral.formats.canonical import Checkpoint
from vitral.tune.adapter_files import load_adapter, save_gguf_adapter, save_peft
from vitral.tune.adapters import merge
from vitral.tune.batch import Row
from vitral.tune.export import write_merged
from vitral.tune.files import staged
from vitral.tune.forward import Transformer, load_model
from vitral.tune.kept import Kept, measure_kept
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.prepare import Prepared, prepare
from vitral.tune.recipe import read_recipe
from vitral.tune.record import ADAPTER, MODEL, base_facts, read_record, tuned_from

__all__ = ["Exported", "Form", "export_run", "summary"]

Form = Literal["peft", "gguf-adapter", "safetensors", "gguf"]
_ROWS = 24  # rows that an export is measured on


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the export is, and what it keeps."""

    path: Path
    form: Form
    type: str | None
    kept: Kept


def export_run(
    folder: Path, path: Path, form: Form, type: str | None = None, progress: Callable[[int, int], object] | None = None
) -> Exported:
    """Write what a finished run learnt to `path`, and measure it there.

    `type` is for the merged forms: a weight type or mix for gguf, F32, F16 or BF16 for safetensors. What is
    measured are the run's own test rows, or training rows where it has none. Raises TuneError for a run that
    has not finished, a path that is taken, a full disk (nothing is left at `path` then), and what the writers raise.
    """
    record = read_record(folder)
    if not record.get("finished"):
        raise TuneError(f"{folder} has not finished; resume it: vitral tune resume {folder}")
    if record["recipe"]["method"]["loss"] == "reward":
        raise TuneError(f"{folder} is a reward model, which scores and writes nothing; name it as method.reward_model")
    if path.exists():
        raise TuneError(f"{path} is there already; give another path")
    if type is not None and form not in ("gguf", "safetensors"):
        raise TuneError(f"an adapter has no weight type; leave {type} out, or merge: --as gguf")
    prepared = prepare(read_recipe(folder / "recipe.toml"))
    base = prepared.base
    if base.weights.digest() != record["base_digest"]:
        raise TuneError(f"{base.path} is not what the run was trained on (weights {str(record['base_digest'])[:12]})")
    tuned, plan = _tuned(folder, base)
    lineage = base_facts(base) | {name: record[name] for name in ("data", "data_licence", "recipe", "versions")}
    with staged(path, "make room and export again; the run is whole") as place:
        if form == "gguf" or form == "safetensors":
            notes = tuned_from(base, record)
            files = tokenizer_files(base.path, form)
            write_merged(tuned, base, place, form, type, tokenizer=files, progress=progress, notes=notes)
        elif plan is None:
            raise TuneError("the run tuned the whole model, so there is no adapter; export it as safetensors or gguf")
        elif form == "peft":
            save_peft(tuned, plan, place, lineage)
        else:
            save_gguf_adapter(tuned, plan, place, lineage)
    return Exported(
        path, form, type, measure_kept(load_model(base), tuned, _read_back(path, form, base), _rows(prepared))
    )


def summary(folder: Path) -> dict[str, Any]:
    """A run in a few figures, to be set beside another's."""
    record = read_record(folder)
    evaluations = record.get("evaluations") or [{}]
    recipe = record["recipe"]
    return {
        "run": str(folder),
        "finished": bool(record.get("finished")),
        "base": record["base"],
        "loss": recipe["method"]["loss"],
        "tuned": recipe["method"]["tune"]
        if recipe["method"]["tune"] == "full"
        else f"{recipe['lora']['kind']} {recipe['lora']['rank']}",
        "trained_parameters": record["trained_parameters"],
        "steps": evaluations[-1].get("step", 0),
        "test_before": evaluations[0].get("test_loss"),
        "test_after": evaluations[-1].get("test_loss"),
        "forgotten": record.get("forgotten", {}),
        "same_base": record["base_digest"],
        "data": sorted(item["sha256"] for item in record["data"]),
    }


def _tuned(folder: Path, base: Checkpoint) -> tuple[Transformer, LoraPlan | None]:
    if (folder / MODEL).exists():
        return load_model(folder / MODEL), None
    model = load_model(base)
    plan = load_adapter(model, folder / ADAPTER, base.weights.digest())
    return model.requires_grad_(False), plan


def _read_back(path: Path, form: Form, base: Checkpoint) -> Transformer:
    """The export as whoever serves it reads it."""
    model = load_model(base) if form in ("peft", "gguf-adapter") else load_model(path)
    if form == "gguf-adapter":
        products = dict(model.linears())
        for name, part in read_adapter(path, base.spec).parts.items():  # as the engine reads it
            weight = products[name.removesuffix(".weight")].weight
            weight.data = weight.data.float() + part.scale * (torch.tensor(part.b) @ torch.tensor(part.a))
    if form == "peft":
        load_adapter(model, path)
        merge(model)
    return model


def _rows(prepared: Prepared) -> list[Row]:
    items = prepared.test.items if prepared.test is not None and prepared.test.items else prepared.train.items
    return [item.rows[0] for item in items[:_ROWS]]
