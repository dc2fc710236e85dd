"""`vitral`: one thin file per command; errors are one line and exit code 2.

Exit codes: 0 done, 1 the answer is no (a failed self-test), 2 the caller must put something right,
130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from vitral.cli import convert, doctor, models, perplexity, quantize, run, show, tokenize
from vitral.errors import VitralError

__all__ = ["app", "main"]

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer brings a click of its own, unnamed

app = typer.Typer(
    name="vitral",
    help="Run Llama, Mistral and Mixtral models here, see inside them, and get the same bits every time.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(show.show)
app.command()(models.pull)
app.command("list")(models.list_models)
app.command()(models.rm)
app.command()(convert.convert)
app.command()(quantize.quantize)
app.command()(perplexity.perplexity)
app.command()(tokenize.tokenize)
app.command()(doctor.doctor)


def main() -> None:
    """Run a command and end the process with its exit code."""
    sys.exit(_code())


def _code() -> int:
    try:
        return app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except typer.Exit as done:
        return done.exit_code
    except (VitralError, _UsageError) as error:
        text = str(error) if isinstance(error, VitralError) else error.format_message()  # type: ignore[attr-defined]
        sys.stderr.write("error: " + " ".join(text.split()) + "\n")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n")
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    main()
