"""What commands print for machines. It needs no `rich`, so that an answer need not wait for it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

__all__ = ["AsJson", "print_json"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead.")]
KvTypeOption = Annotated[
    str, typer.Option(help="What keys and values are kept as: bf16, f16, f32, or q8_0, half of bf16's memory.")
]


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
