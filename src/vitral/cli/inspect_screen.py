"""The document of `vitral inspect` on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from vitral.cli.output import console, facts

__all__ = ["show"]

_LENS_COLUMNS = 8
_PARTS = 8
_ROUTE_COLUMNS = 60
_HUES = ["blue", "cyan", "green", "yellow", "magenta", "red", "bright_blue", "bright_green"]


def show(document: Mapping[str, Any]) -> None:
    """Facts, tokens, the lens, the last prediction, its attribution, and the routes of experts."""
    model, run = document["model"], document["run"]
    facts(f"{model['name']}: {len(document['tokens'])} tokens", {
        "layers": model["n_layers"], "heads": model["n_heads"], "experts": model["n_experts"] or "none",
        "last prediction": f"{run['predictions'][-1]['entropy']} bits of uncertainty",
    })  # fmt: skip
    console.print(_tokens(document))
    console.print(_lens(document))
    console.print(_prediction(document))
    console.print(_attribution(document))
    if run["experts"]:
        console.print(_routes(document))


def _tokens(document: Mapping[str, Any]) -> Text:
    """The text; the brighter a token's ground, the less it was expected."""
    line = Text("the text; marked: unexpected\n", style="bold")
    for i, token in enumerate(document["tokens"]):
        before = document["run"]["predictions"][i - 1]["next"] if i else None
        bits = -math.log2(max(before["prob"], 1e-9)) if before else 0
        style = "not bold" if bits < 3 else "not bold black on yellow" if bits < 8 else "not bold white on red"
        line.append(_seen(token["text"]).replace("·", " ") + ("\n" if "\n" in token["text"] else ""), style)
    return line.append("\n")


def _lens(document: Mapping[str, Any]) -> Table:
    lens, start = document["run"]["lens"], document["window"]["start"]
    width = len(lens["ids"][0])
    columns = range(max(0, width - _LENS_COLUMNS), width)
    grid = _table("what each layer would say next", ["layer"], right=["layer"])
    for column in columns:
        grid.add_column(Text(_seen(document["tokens"][start + column]["text"])), no_wrap=True, max_width=11)
    for layer in reversed(range(document["model"]["n_layers"])):
        cells = []
        for column in columns:
            probability = lens["probs"][layer][column][0]
            style = "dim" if probability < 0.1 else "" if probability < 0.5 else "bold cyan"
            cells.append(Text(_seen(document["texts"][str(lens["ids"][layer][column][0])]), style))
        grid.add_row(str(layer), *cells)
    return grid


def _prediction(document: Mapping[str, Any]) -> Table:
    after = _shares(document["run"])
    before = _shares(document["before"]) if "before" in document else None
    names = ["before", "after"] if before is not None else ["probability"]
    grid = _table("what comes next", ["token", *names], right=names)
    for id in after if before is None else dict.fromkeys([*before, *after]):
        values = [after.get(id)] if before is None else [before.get(id), after.get(id)]
        grid.add_row(Text(_seen(document["texts"][str(id)])), *("-" if v is None else f"{v:.6f}" for v in values))
    return grid


def _shares(run: Mapping[str, Any]) -> dict[int, float]:
    top = run["predictions"][-1]["top"]
    return dict(zip(top["ids"], top["probs"], strict=True))


def _attribution(document: Mapping[str, Any]) -> Table:
    found = document["run"]["attribution"]
    names = ["embedding"]
    for layer in range(document["model"]["n_layers"]):
        names += [f"{layer} attention", f"{layer} feed-forward"]
    parts = [(name, values[-1]) for name, values in zip(names, found["components"], strict=True)]
    parts += [
        (f"{layer} attention, head {head}", values[-1])
        for layer, heads in enumerate(found["heads"])
        for head, values in enumerate(heads)
    ]
    target = _seen(document["texts"][str(found["targets"][-1])])
    grid = _table(f"what adds most to the logit {found['logits'][-1]:.3f} of {target}", ["part", "adds", ""], ["adds"])
    largest = sorted(parts, key=lambda part: -abs(part[1]))[:_PARTS]
    most = max(abs(value) for _, value in largest) or 1.0
    for name, value in largest:
        bar = Text("█" * max(1, round(abs(value) / most * 24)), "cyan" if value > 0 else "yellow")
        grid.add_row(name, f"{value:+.3f}", bar)
    rounding = found["rounding"][-1]
    grid.add_row("rounding of activations", f"{rounding:+.3f}", "" if rounding else "none: the weights are floats")
    return grid


def _routes(document: Mapping[str, Any]) -> Table:
    indices: Sequence[Any] = document["run"]["experts"]["indices"]
    grid = _table("which expert came first, token by token", ["layer", "experts"], ["layer"])
    for layer in reversed(range(len(indices))):
        line = Text() if indices[layer] else Text("no experts", "dim")
        for chosen in indices[layer][-_ROUTE_COLUMNS:]:
            line.append(f"{chosen[0]:x}" if chosen[0] < 16 else "+", f"black on {_HUES[chosen[0] % len(_HUES)]}")
        grid.add_row(str(layer), line)
    return grid


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    grid = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for name in columns:
        grid.add_column(name, justify="right" if name in right else "left", style="dim" if name == "layer" else "")
    return grid


def _seen(text: str) -> str:
    """White space as signs; what could move the cursor as nothing but a mark."""
    shown = text.replace(" ", "·").replace("\n", "↵")
    return "".join(c if c.isprintable() else "␣" for c in shown)
