"""`vitral tune`: teach a model, see what it learns from, take the result where it is served."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitral.cli import tune_models
from vitral.cli.output import AsJson, console, facts, print_json, progress_bar, size_text, table, tell
from vitral.cli.tune_needs import need_torch
from vitral.errors import TuneError

if TYPE_CHECKING:
    from vitral.tune.prepare import Prepared
    from vitral.tune.run import Event, Result

__all__ = ["app"]

app = typer.Typer(
    help="Teach a model: fine-tuning, preferences, merging, experts.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RecipeFile = Annotated[Path, typer.Argument(help="A recipe (TOML); `vitral tune init` writes one.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]

_RECIPE = """# A recipe for `vitral tune run`. Every key that is not here has the value that
# docs/reference/tune-recipe.md names; a key that is not known is an error.

[model]
base = "{base}"

[data]
train = ["{data}"]
hold_out = 0.1       # share kept apart to measure with; or test = ["test.jsonl"]
context = 512        # items over this many tokens are refused, not cut
licence = ""         # of the data: travels with what is learnt

[method]
loss = "{loss}"          # sft, dpo, ipo, orpo, kto, distil, reward, grpo, ppo, rejection
tune = "lora"        # lora or full

[lora]
rank = 16
alpha = 32.0

[run]
epochs = 3.0
batch = 8
learning_rate = 2e-4
evaluate_every = 20
"""


class Form(StrEnum):
    """What a run is exported as."""

    PEFT = "peft"
    GGUF_ADAPTER = "gguf-adapter"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@app.command()
def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe to write.")],
    base: Annotated[str, typer.Option(help="A path or a short name.")] = "smollm2:135m",
    data: Annotated[str, typer.Option(help="A data file or folder.")] = "train.jsonl",
    loss: Annotated[
        str, typer.Option(help="The loss: sft, dpo, ipo, orpo, kto, distil, reward, grpo, ppo or rejection.")
    ] = "sft",
    as_json: AsJson = False,
) -> None:
    """Write a recipe to begin with."""
    import tomllib

    from vitral.tune.recipe import parse_recipe

    text = _RECIPE.format(
        base=_quoted(_seen_from(recipe, base)), data=_quoted(_seen_from(recipe, data)), loss=_quoted(loss)
    )
    if loss == "distil":
        text = text.replace("tune = ", 'teacher = "teacher.gguf"  # a larger model with the same vocabulary\ntune = ')
    if loss in ("grpo", "ppo", "rejection"):  # they are measured by the reward of their own answers
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("hold_out"))
        text = text.replace(
            "tune = ", 'reward = "number"    # number, exact, contains; or model, with reward_model\ntune = '
        )
    parse_recipe(tomllib.loads(text))
    if recipe.exists():
        raise TuneError(f"{recipe} is there already; give another name")
    recipe.write_text(text)
    if as_json:
        print_json({"recipe": recipe})
    else:
        console.print(f"{recipe} is written. Next: vitral tune preview {recipe}", highlight=False, soft_wrap=True)


@app.command()
def preview(
    recipe: RecipeFile,
    items: Annotated[int, typer.Option(min=0, help="How many items to show.")] = 3,
    page: Annotated[Path | None, typer.Option("--html", help="Write them, and as many as asked, to this page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at the data before training.

    What carries loss, what forbids the run, and what the run will take.
    """
    need_torch()
    from vitral.tune.preview import BRACKETS, as_page, as_text, spans

    prepared = _prepared(recipe)
    shown = prepared.train.items[:items]
    if page is not None:
        page.write_text(as_page(shown, prepared.tokenizer, f"What {recipe.name} learns from"), "utf-8")
    found = prepared.preflight
    if as_json:
        _refuse(prepared)
        print_json({
            "preflight": asdict(found),
            "steps": prepared.n_steps,
            "estimate": asdict(prepared.estimate) | {"total_bytes": prepared.estimate.total_bytes},
            "items": [{"place": item.example.place, "rows": [[asdict(span) for span in spans(row, prepared.tokenizer)] for row in item.rows]}
                      for item in shown],
        })  # fmt: skip
        return
    if prepared.train.items:
        _show_preflight(prepared)
        colours = console.color_system is not None
        if shown:
            where = "on green" if colours else f"between {BRACKETS[0]} and {BRACKETS[1]}"
            console.print(f"\nThe model learns to write what stands {where}; all else is only read.", markup=False)
        for item in shown:
            console.print(f"\n{item.example.place}", style="bold", highlight=False, markup=False)
            for text in as_text(item, prepared.tokenizer, colours):
                console.print(text)
    if page is not None:
        tell(f"the page is {page}")
    _refuse(prepared)


@app.command()
def run(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="The folder that the run is written to.")],
    as_json: AsJson = False,
) -> None:
    """Train as a recipe says. Ctrl-C saves the step; `vitral tune resume` goes on."""
    need_torch()
    from vitral.tune.recipe import read_recipe

    _run(read_recipe(recipe), out, False, as_json)


@app.command()
def resume(folder: RunFolder, as_json: AsJson = False) -> None:
    """Go on with an interrupted run.

    To the same bits as without the interruption.
    """
    need_torch()
    from vitral.tune.recipe import read_recipe
    from vitral.tune.record import read_record

    read_record(folder)
    _run(read_recipe(folder / "recipe.toml"), folder, True, as_json)


@app.command()
def replay(folder: RunFolder, as_json: AsJson = False) -> None:
    """Train again from a run's record and compare every step.

    EXACT, or the first step whose loss differs (exit code 1). Bits are promised for runs on one thread.
    """
    need_torch()
    from vitral.tune.replay import replay_run

    with _watch(as_json) as watch:
        found = replay_run(folder, watch)
    difference = found.difference
    if as_json:
        print_json(asdict(found) | {"verdict": found.verdict})
    else:
        console.print(f"[bold]{found.verdict}[/bold]  {found.steps} steps of {folder}", highlight=False, soft_wrap=True)
        if difference is not None:
            values = {
                "step": difference.step,
                difference.what: f"{difference.recorded!r} then, {difference.found!r} now",
            }
            facts("first difference", values | ({"threads": found.threads} if found.threads > 1 else {}))
        if found.environment:
            facts("not as it was", {name: f"{then} then, {now} now" for name, (then, now) in found.environment.items()})
    if difference is not None:
        raise typer.Exit(1)


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    form: Annotated[Form, typer.Option("--as", help="An adapter, or a merged model.")] = Form.PEFT,
    type: Annotated[
        str | None, typer.Option("--type", help="Weight type of a merged model: Q8_0, Q4_K_M, F16 ...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what a run learnt as an adapter or a merged model.

    How much of it that form keeps is measured.
    """
    need_torch()
    from vitral.tune.after import export_run

    with progress_bar("tensors") as bar:
        exported = export_run(folder, out, form.value, type, progress=bar)
    kept = exported.kept
    if as_json:
        print_json(asdict(exported) | {"share": kept.share, "warning": kept.warning})
        return
    facts(f"{out}, measured on {kept.tokens} tokens", {
        "share of the tuning kept": f"{kept.share:.1%}",
        "loss: base, tuned, this export": f"{kept.base_loss:.4f}, {kept.tuned_loss:.4f}, {kept.export_loss:.4f}",
        "divergence from the tuned model": f"{kept.divergence:.5f} nats a token (the base's: {kept.base_divergence:.5f})",
        "same likeliest token as tuned": f"{kept.agreement:.1%}",
    })  # fmt: skip
    if kept.warning:
        console.print(kept.warning, style="bold yellow", highlight=False, markup=False)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="The folders of runs.")], as_json: AsJson = False
) -> None:
    """Set runs side by side."""
    need_torch()
    from vitral.tune.after import summary

    rows = [summary(folder) for folder in folders]
    if as_json:
        print_json(rows)
        return
    if len({row["same_base"] for row in rows}) > 1:
        tell("the runs have different bases")
    if len({tuple(row["data"]) for row in rows}) > 1:
        tell("the runs have different data: their test losses are not to be compared")
    columns = [
        "run",
        "loss",
        "tuned",
        "trained",
        "steps",
        "test before",
        "after",
        "forgotten (neutral)",
        "(own answers)",
    ]
    cells = [[row["run"], row["loss"], row["tuned"], f"{row['trained_parameters']:,}", row["steps"], _figure(row["test_before"]),
              _figure(row["test_after"]), _figure(row["forgotten"].get("neutral"), "+.4f"),
              _figure(row["forgotten"].get("own_answers"), "+.4f")] for row in rows]  # fmt: skip
    table("Runs", columns, cells, numbers=columns[3:])


app.command()(tune_models.merge)
app.command()(tune_models.add)
app.command()(tune_models.upcycle)


def _run(recipe: Any, out: Path, resuming: bool, as_json: bool) -> None:
    from vitral.tune.report import write_report
    from vitral.tune.run import STATE, Evaluation, run_recipe

    def seen(event: Event) -> None:
        watch(event)
        if isinstance(event, Evaluation) and event.step:  # the first comes before there is a record
            write_report(out)

    try:
        with _watch(as_json) as watch:
            result = run_recipe(recipe, out, resume=resuming, on_event=seen)
    except KeyboardInterrupt:
        if (out / STATE).exists():
            tell(f"interrupted; go on with: vitral tune resume {out}")
            write_report(out)
        else:
            tell("interrupted before a step was saved; run it again")
        raise
    page = write_report(out)
    _show_result(result, page, as_json)


@contextmanager
def _watch(as_json: bool) -> Iterator[Any]:
    """What is shown while it runs: a live curve on a terminal, a line now and then elsewhere, nothing for JSON."""
    from rich.live import Live

    from vitral.cli.tune_screen import Screen
    from vitral.tune.run import Stopping

    if as_json:
        yield lambda event: None
        return
    screen = Screen()
    if sys.stderr.isatty():
        from rich.console import Console

        with Live(screen, console=Console(stderr=True), refresh_per_second=4, transient=True) as live:

            def draw(event: Event) -> None:
                screen.take(event)
                if not isinstance(event, Stopping):  # told within a signal's handler: the next refresh shows it
                    live.refresh()

            yield draw
        return
    last = 0.0

    def line(event: Event) -> None:
        nonlocal last
        before = len(screen.notes)
        screen.take(event)
        if isinstance(event, Stopping):  # within a signal's handler, where streams may be busy
            os.write(sys.stderr.fileno(), f"{screen.notes[-1]}\n".encode())
        elif len(screen.notes) > before:
            tell(screen.notes[-1])
        elif time.monotonic() - last > 5 or screen.step == screen.total:
            last = time.monotonic()
            tell(screen.line())

    yield line


def _show_result(result: Result, page: Path, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result) | {"report": page})
        return
    shown: dict[str, object] = {"output": result.output, "steps": result.steps, "report": page}
    if result.after.test_loss is not None and result.before.test_loss is not None:
        shown["test loss, before and after"] = f"{result.before.test_loss:.4f}, {result.after.test_loss:.4f}"
    for name, before in result.before.forgetting.items():
        shown[f"loss on {name.replace('_', ' ')}"] = f"{before:.4f}, {result.after.forgetting[name]:.4f}"
    if result.stopped == "patience":
        shown["stopped early"] = "the test loss rose; the best step was kept"
    facts("Tuned", shown)
    tell(f"next: vitral tune export {result.folder} OUT --as gguf --type Q8_0")


def _show_preflight(prepared: Prepared) -> None:
    found, cost = prepared.preflight, prepared.estimate
    facts(f"{prepared.recipe.data.train[0]}", {
        "shape": prepared.train.shape or "none",
        "items": f"{found.n_train} to train on, {found.n_test} to test with",
        "tokens": f"{found.n_tokens}, of which {found.n_supervised} carry loss",
        "lengths": "  ".join(f"≤{bound}: {count}" for bound, count in found.lengths.items()) + f"  (longest {found.longest})",
        "over the context": f"{found.too_long} (data.too_long = {prepared.recipe.data.too_long})",
        "languages": ", ".join(f"{name} {count}" for name, count in found.languages.items()),
        "steps": prepared.n_steps,
        "trained parameters": f"{cost.trainable:,}",
        "memory, about": f"{size_text(cost.total_bytes)} (weights {size_text(cost.weights)}, activations {size_text(cost.activations)}, "
                         f"logits {size_text(cost.logits)}, optimiser {size_text(cost.optimizer)}, the base's file "
                         f"{size_text(cost.file)}, torch {size_text(cost.runtime)})",
        "time, about": _duration(cost.seconds),
    })  # fmt: skip
    for warning in found.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _refuse(prepared: Prepared) -> None:
    """What forbids the run, as an error."""
    from vitral.tune.estimate import refuse_too_large

    prepared.train.refuse()
    prepared.preflight.refuse()
    refuse_too_large(prepared.estimate)


def _prepared(recipe: Path) -> Prepared:
    from vitral.tune.prepare import prepare
    from vitral.tune.recipe import read_recipe

    return prepare(read_recipe(recipe))


def _seen_from(recipe: Path, name: str) -> str:
    """A path as the recipe must name it, whose paths count from its own folder; any other name as it is."""
    folder, here = recipe.parent.resolve(), Path.cwd()
    if folder == here or Path(name).is_absolute() or not Path(name).exists():
        return name
    return os.path.relpath(Path(name).absolute(), folder)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
