"""`vitral quantize`: a smaller model, and what it costs tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.convert import Layout, write
from vitral.cli.output import AsJson, print_json, table, tell

__all__ = ["quantize"]


def quantize(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    out: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
    type: Annotated[str, typer.Option("--type", help="Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0, IQ4_XS, F16 ...")] = "Q4_K_M",
    as_json: AsJson = False,
) -> None:
    """Quantise a model to GGUF and report the error of each tensor."""
    errors = write(model, out, Layout.GGUF, type)
    for error in errors:
        if error.fallback_from:
            tell(f"{error.name}: {error.type} instead of {error.fallback_from}, whose blocks do not fit its rows")
    if as_json:
        print_json({"path": out, "type": type, "tensors": [asdict(error) for error in errors]})
        return
    worst = sorted(errors, key=lambda error: -error.relative)[:15]
    rows = [(e.name, e.type, f"{e.relative:.4%}", f"{e.rmse:.3g}", f"{e.largest:.3g}") for e in worst]
    table(f"{out}: the largest errors of {len(errors)} tensors", ["tensor", "type", "relative", "rms", "largest"], rows,
          numbers=["relative", "rms", "largest"])  # fmt: skip
