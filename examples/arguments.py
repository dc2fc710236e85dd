"""What the tuning examples are asked on their command line: where to write, which base, and whether in short."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["arguments"]


def arguments(about: str | None, *, short: bool = True) -> argparse.ArgumentParser:
    """A parser of OUT, --base and, with `short`, --short; `about` is an example's docstring.

    >>> options = arguments("Teach a word.").parse_args(["out", "--short"])
    >>> options.out, options.base, options.short
    (PosixPath('out'), 'smollm2:135m', True)
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder that everything is written to; it is made")
    parser.add_argument("--base", default="smollm2:135m", help="a path or a short name")
    if short:
        parser.add_argument("--short", action="store_true", help="two steps, to see that everything runs")
    return parser
