"""Writes what the code knows into docs/reference: commands, weight types, measured errors of taps. `python -m tools.reference`."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from tools.tap_matrix import tap_matrix
from vitral.cli.main import app
from vitral.formats.mixes import FILE_TYPES, plan_types
from vitral.formats.quants import TYPES
from vitral.model.names import tensor_shapes
from vitral.model.presets import preset
from vitral.tune.recipe import Recipe

__all__ = ["FOLDER", "pages"]

FOLDER = Path(__file__).parent.parent / "docs" / "reference"

_HEAD = """# Command line

Written by `make docs` from the commands themselves; a test compares the two.

A model is given as a path to a file or folder of any layout, as a short name that `vitral list` shows, or as `hf:owner/name`, with `:file` behind it to choose among several. What the store lacks is fetched.

Every command takes `--json`: standard output then holds one JSON document in every case, the answer or `{"error": {"type": ..., "message": ...}}`. Notes and progress go to standard error. [Exit codes](errors.md#exit-codes), [environment variables](environment.md).
"""


def pages() -> dict[str, str]:
    """Every page that holds something generated, by file name, as it ought to be."""
    found = {"cli.md": _cli(), "tune-recipe.md": _recipe(), "tap-matrix.md": tap_matrix()}
    text = (FOLDER / "layouts-and-types.md").read_text("utf-8")
    for mark, part in {"types": _types(), "file types": _file_types()}.items():
        before, rest = text.split(f"<!-- {mark} -->\n")
        text = f"{before}<!-- {mark} -->\n{part}\n{rest[rest.index(f'<!-- /{mark} -->') :]}"
    return found | {"layouts-and-types.md": text}


def _types() -> str:
    rows = [f"| {t.name} | {t.block} | {t.bytes_per_block} | {t.bits_per_weight:g} |" for t in TYPES.values()]
    return "\n".join(["| type | weights in a block | bytes of a block | bits a weight |", "|---|---|---|---|", *rows])


def _file_types() -> str:
    spec = preset("llama-3.1-8b")
    shapes = tensor_shapes(spec)
    rows = []
    for name, kind in FILE_TYPES.items():
        plan = plan_types(spec, name)
        bits = sum(math.prod(shapes[t]) * TYPES[planned.type].bits_per_weight for t, planned in plan.items())
        total = sum(map(math.prod, shapes.values()))
        others = dict.fromkeys(p.type for p in plan.values() if p.type not in ("F32", kind.type))
        rows.append(f"| {name} | {kind.type} | {', '.join(others)} | {bits / total:.2f} | {kind.number} |")
    head = ["| file type | most matrices | some | bits a weight | `general.file_type` |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _cli() -> str:
    root = get_command(app())
    return "\n".join([_HEAD, *_options(root, "vitral"), *_commands(root, "vitral")]).rstrip() + "\n"


def _commands(group: Any, path: str) -> list[str]:
    lines: list[str] = []
    for name, command in group.commands.items():
        full = f"{path} {name}"
        lines += [f"## {full}", "", inspect.cleandoc(command.help or ""), ""]
        if hasattr(command, "commands"):
            lines += [line.replace("## ", "### ", 1) for line in _commands(command, full)]
            continue
        context = command.make_context(full, [], resilient_parsing=True)
        lines += [f"```\n{full} {' '.join(command.collect_usage_pieces(context))}\n```", ""]
        lines += _options(command, full)
    return lines


_RECIPE = """# The recipe of a tuning

Written by `make docs` from [`tune/recipe.py`](../../src/vitral/tune/recipe.py); a test compares the two.

A recipe is a TOML file with these tables. A key that is not here is an error that names the nearest one. Relative paths count from the recipe's folder. `vitral tune init` writes one to begin with; every run keeps its own, all values written out, as `recipe.toml`.
"""


def _recipe() -> str:
    lines = [_RECIPE]
    for part, kind in get_type_hints(Recipe).items():
        lines += [
            f"## [{part}]",
            "",
            inspect.cleandoc(kind.__doc__ or ""),
            "",
            "| key | kind | default |",
            "|---|---|---|",
        ]
        hints = get_type_hints(kind)
        lines += [f"| `{f.name}` | {_kind(hints[f.name])} | {_default(f)} |" for f in fields(kind)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_kind(get_args(hint)[0])}s"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[hint]


def _default(f: Field[Any]) -> str:
    if f.default is MISSING:
        return "must be given"
    value = list(f.default) if isinstance(f.default, tuple) else f.default
    return f"`{json.dumps(value)}`"


def _options(command: Any, path: str) -> list[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(_cell(name), _cell(text)) for name, text in filter(None, records) if name != "--help"]
    return ["| | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")
