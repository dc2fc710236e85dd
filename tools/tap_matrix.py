"""docs/reference/tap-matrix.md from the results of `benchmarks.taps` and `benchmarks.transformerlens`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitral.model.presets import preset
from vitral.model.taps import taps

__all__ = ["tap_matrix"]

_RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_GROUPS = {"Llama": "llama", "Mistral": "mistral", "Mixtral": "mixtral", "SmolLM2": "smollm2"}
_HEAD = """# Taps beside transformers and TransformerLens

Written by `make docs` from `benchmarks/results/taps.json` and `transformerlens.json`, which `python -m benchmarks.taps` and `python -m benchmarks.transformerlens` measure; a test compares the two.

Every tap of tiny random models and of SmolLM2 with its weights dequantised, all in float32, beside transformers {transformers}; those that TransformerLens {transformer-lens} has too, beside its own models with the same weights. A number is the largest difference over the largest magnitude of the tap, over all blocks and experts; allowed are {tolerance:g}. `0` is equality; chosen experts are compared as whole numbers. Worst: where the largest of a row beside transformers is, with the token's place. `–`: not there, or not compared. Shape letters are those of [taps](../explanation/taps.md): T tokens, C width, H heads, K kv heads, D head width, S cached positions, F hidden width, E experts, k experts a token, n tokens routed to an expert, V vocabulary.
"""


def tap_matrix() -> str:
    """The page, as it ought to be."""
    ours = json.loads((_RESULTS / "taps.json").read_text("utf-8"))
    theirs = json.loads((_RESULTS / "transformerlens.json").read_text("utf-8"))
    names = [*ours["taps"], *theirs["names"]]
    notes = {**ours["versions"], **theirs["versions"], "tolerance": ours["tolerance"]}
    lens = _largest(theirs["names"])
    lines = [_HEAD.format(**notes), "| tap | shape | " + " | ".join(_GROUPS) + " | worst | TransformerLens |"]
    lines.append("|---|---|" + "---|" * (len(_GROUPS) + 2))
    groups = {
        label: _largest({m: e for m, e in ours["taps"].items() if m.startswith(start)})
        for label, start in _GROUPS.items()
    }
    for tap, shape in _kinds():
        cells = [groups[label].get(tap) for label in _GROUPS]
        worst = max((cell for cell in cells if cell is not None), key=lambda cell: cell[0], default=None)
        row = [f"`{tap}`", shape, *(_error(cell) for cell in cells), "–" if worst is None or not worst[0] else worst[1]]
        lines.append("| " + " | ".join([*row, _error(lens.get(tap))]) + " |")
    lines += ["", f"Models: {'; '.join(dict.fromkeys(names))}."]
    return "\n".join(lines) + "\n"


def _kinds() -> list[tuple[str, str]]:
    """Names with N for the block and E for the expert, and their shapes, in the order of the forward pass."""
    spec = replace(preset("mixtral-8x7b"), n_layers=1)
    dense, mixed = ({_kind(tap.name): tap.shape for tap in taps(s)} for s in (replace(spec, moe=None), spec))
    end = list(dense).index("blocks.N.hook_mlp_out")
    order = dict.fromkeys([*list(dense)[:end], *(name for name in mixed if name not in dense), *dense])
    return [(name, (dense | mixed)[name]) for name in order]


def _largest(models: dict[str, dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """By kind of tap: the largest error and where it is."""
    found: dict[str, tuple[float, str]] = {}
    for model, errors in models.items():
        for name, entry in errors.items():
            error, token = (entry["error"], entry["worst_token"]) if isinstance(entry, dict) else (entry, None)
            kind = _kind(name)
            if kind not in found or error > found[kind][0]:
                where = name.removesuffix(kind.rpartition(".")[2]).rstrip(".")
                found[kind] = error, f"{model.partition(',')[0]}, {where or 'model'}, token {token}"
    return found


def _kind(name: str) -> str:
    return re.sub(r"experts\.\d+\.", "experts.E.", re.sub(r"blocks\.\d+\.", "blocks.N.", name))


def _error(cell: tuple[float, str] | None) -> str:
    return "–" if cell is None else f"{cell[0]:.1e}" if cell[0] else "0"
