"""What commands print: tables for people, JSON for machines (`vitral.cli.machine`), progress on standard error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vitral.cli.machine import AsJson, print_json

__all__ = ["AsJson", "console", "facts", "print_json", "progress_bar", "size_text", "table", "tell"]


class _Terminal(Console):
    """A console that leaves it to the command line what a broken pipe means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = _Terminal()
_notes = Console(stderr=True)


def tell(line: str) -> None:
    """A line about what is happening, on standard error."""
    _notes.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def facts(title: str, rows: Mapping[str, object]) -> None:
    """Names and values in two columns."""
    grid = Table(
        title=Text(title), show_header=False, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0)
    )
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, Text(str(value)))  # Text: what a file says is never read as markup
    console.print(grid)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """A table; the columns named in `numbers` are set to the right."""
    grid = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in columns:
        grid.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*[Text(str(cell)) for cell in row])
    console.print(grid)


@contextmanager
def progress_bar(what: str) -> Iterator[Any]:
    """A bar on standard error, if that is a terminal; call what it gives with (done, all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_notes, transient=True, disable=not _notes.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size_text(n_bytes: float) -> str:
    """Bytes as people write them.

    >>> size_text(98_362_432)
    '98.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
