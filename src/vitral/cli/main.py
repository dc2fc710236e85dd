"""`vitral`: one thin file per command; errors are one line and exit code 2.

Exit codes: 0 done, 1 the answer is no (a failed self-test, a denied use, a refused
file), 2 the caller must put something right,
3 a person must decide, 4 a duty is not kept yet (`licence` alone), 130 interrupted. With --json, standard output holds one JSON document in every case: the answer, or
`{"error": {"type": ..., "message": ...}}`.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from vitral.cli.machine import print_json
from vitral.errors import VitralError

__all__ = ["COMMANDS", "app", "main"]

_INTERRUPTED = 130
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer brings a click of its own, unnamed

COMMANDS = {
    "run": ("run:run", "Chat with a model, or answer once."),
    "serve": ("serve:serve", "Serve models over HTTP."),
    "replay": ("replay:replay", "Run a recorded answer again and compare every step."),
    "evidence": ("evidence:evidence", "Prove an answer with values from inside the model."),
    "inspect": ("inspect:inspect", "Show what a model saw, expected and weighed in a text."),
    "show": ("show:show", "Show what a model is and what it needs."),
    "pull": ("models:pull", "Fetch a model and verify its digest."),
    "list": ("models:list_models", "List fetched models and known short names."),
    "rm": ("models:rm", "Delete a model from the store."),
    "convert": ("convert:convert", "Write a model in another layout with the same values."),
    "quantize": ("quantize:quantize", "Quantise a model to GGUF and report the error of each tensor."),
    "perplexity": ("perplexity:perplexity", "Measure how well a model predicts a text, by sliding windows."),
    "tokenize": ("tokenize:tokenize", "Show which tokens a text becomes."),
    "scan": ("scan:scan", "Look for code, lying headers and poisoned templates."),
    "digest": ("digest:digest", "Digest every file of a model, and its weights by themselves."),
    "diff": ("diff:diff", "Say what differs between two models, across layouts."),
    "drift": ("drift:drift", "Compare two files of one model from the inside."),
    "bom": ("bom:bom", "Write a model's bill of materials, or check somebody's."),
    "sign": ("sign:sign", "Sign every file of a model with a key of your own."),
    "verify": ("sign:verify", "Say whether a model is what was signed, or evidence is exact."),
    "bench": ("bench:bench", "Measure how fast a model is on this machine."),
    "doctor": ("doctor:doctor", "Say what this machine offers, and test every kernel."),
    "tune": ("tune:app", "Teach a model: fine-tuning, preferences, merging, experts."),
    "licence": ("licence:app", "Licences: a verdict with the clause that decides, and what must travel."),
}
"""Each command, in the order of the help: where it is, a module of this package and a function or a group, and what
the list of commands says of it, which is the first sentence of its help."""


def app(only: str | None = None) -> typer.Typer:
    """The program with all its commands, or with one: the modules of the others then stay unread."""
    program = _program()
    for name in COMMANDS if only is None else [only]:
        module, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(import_module(f"vitral.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            program.add_typer(command, name=name)
        else:
            program.command(name)(command)
    return program


def outline() -> typer.Typer:
    """The program with the names of its commands and a sentence on each, for help and refusals: no module is read."""
    program = _program()
    for name, (_, about) in COMMANDS.items():
        program.command(name, help=about)(_options)
    return program


def _program() -> typer.Typer:
    program = typer.Typer(
        name="vitral",
        help="Run Llama, Mistral and Mixtral models here, see inside them, and get the same bits every time.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_options)
    return program


def _print_version(wanted: bool) -> None:
    if wanted:
        from vitral.version import version

        sys.stdout.write(f"vitral {version()}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Run a command and end the process with its exit code."""
    gc.set_threshold(100_000, 50, 50)  # a start makes many objects and no garbage: 40 ms of 0.7 s
    sys.exit(_code(sys.argv[1:]))


def _code(args: list[str]) -> int:
    named = next((argument for argument in args if not argument.startswith("-")), None)
    if args == [named] and COMMANDS.get(named or "", ("", ""))[0].endswith(
        ":app"
    ):  # a group alone: which commands it has
        args = [*args, "--help"]
    try:
        program = app(named) if named in COMMANDS else outline()
        code = program(args or ["--help"], prog_name="vitral", standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that has gone is no traceback
        if code == _INTERRUPTED:  # typer makes an exit code of it when a command was running
            raise KeyboardInterrupt
        return code
    except typer.Exit as done:
        return done.exit_code
    except _UsageError as error:
        return _refused(args, "UsageError", _usage(error))
    except VitralError as error:
        return _refused(args, type(error).__name__, str(error))
    except MemoryError as error:
        return _refused(args, "MemoryError", f"out of memory: {error or 'what was asked for is more than is free'}")
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return _INTERRUPTED
    except (BrokenPipeError, SystemExit):  # such as `| head`; typer makes a SystemExit of it when a command prints
        _drop_output()
        return 0
    except OSError as error:  # a full disk, a folder that may not be written to
        where = f"{error.filename}: " if error.filename else ""
        return _refused(args, "OSError", f"{where}{error.strerror or error}; free it, or give another path")


def _refused(args: list[str], kind: str, message: str) -> int:
    line = " ".join(message.split())
    try:
        if "--json" in args[: args.index("--")] if "--" in args else "--json" in args:
            print_json({"error": {"type": kind, "message": line}})
        sys.stdout.flush()
    except OSError:  # it may be standard output itself that failed; the line below still says so
        _drop_output()
    sys.stderr.write(f"error: {line}\n")
    return 2


def _usage(error: Any) -> str:
    """What was wrong with the options, and where the right ones stand."""
    path = error.ctx.command_path if error.ctx else "vitral"
    return f"{error.format_message().rstrip('.')}; see: {path} --help"


def _drop_output() -> None:
    """Nothing more can be written, and Python's own last flush should not try."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
