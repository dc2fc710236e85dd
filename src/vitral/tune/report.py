"""A finished or unfinished run as one HTML page: curves, figures, what was forgotten, the recipe."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitral.tune.chart import in_svg
from vitral.tune.files import write_whole
from vitral.tune.record import read_log, read_record

__all__ = ["write_report"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tuning {title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 52rem; padding: 0 1rem; color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top }}
th {{ color: #555; font-weight: 500 }} pre {{ background: #f6f6f4; padding: .8rem; border-radius: 6px; overflow-x: auto }}
</style></head><body><h1>Tuning {title}</h1>{chart}{figures}<h2>Recipe</h2><pre>{recipe}</pre></body></html>
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run and return its path."""
    record, log = read_record(folder), list(read_log(folder))
    steps = [(line["step"], line["loss"]) for line in log if line["event"] == "StepReport"]
    tests = [
        (line["step"], line["test_loss"])
        for line in log
        if line["event"] == "Evaluation" and line["test_loss"] is not None
    ]
    curves = {"training loss": steps} | ({"test loss": tests} if tests else {})
    path = folder / "report.html"
    page = _PAGE.format(
        title=html.escape(Path(record["base"]).name),
        chart=in_svg(curves),
        figures=_table(_figures(record, steps)),
        recipe=html.escape((folder / "recipe.toml").read_text("utf-8")),
    )
    write_whole(path, page, "make room; the run itself is whole")
    return path


def _figures(record: Mapping[str, Any], steps: list[tuple[int, float]]) -> dict[str, object]:
    evaluations = record.get("evaluations") or [{}]
    found: dict[str, object] = {
        "base": record["base"],
        "weights (sha256)": record["base_digest"],
        "trained parameters": f"{record['trained_parameters']:,}",
        "steps": f"{len(steps)} of {record['steps']}" + ("" if record.get("finished") else ", not finished"),
        "precision": record["precision"],
    }
    if evaluations[0].get("test_loss") is not None:
        found["test loss, before and after"] = f"{evaluations[0]['test_loss']:.4f}, {evaluations[-1]['test_loss']:.4f}"
    for name, rise in record.get("forgotten", {}).items():
        found[f"loss on {name.replace('_', ' ')}, change"] = f"{rise:+.4f} nats a token"
    for item in record["data"]:
        found[f"data {Path(item['path']).name}"] = f"sha256 {item['sha256']}"
    found["licence of the base"] = record.get("base_licence") or "not known"
    found["licence of the data"] = record.get("data_licence") or "not known"
    return found


def _table(rows: Mapping[str, object]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table>{cells}</table>"
