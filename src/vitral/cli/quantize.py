"""`vitral quantize`: a smaller model, and what it costs tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitral.cli.convert import Layout, SplitGb, split_bytes, write
from vitral.cli.output import AsJson, print_json, progress_bar, table, tell
from vitral.errors import RequestError

if TYPE_CHECKING:
    from vitral.formats.imatrix import Imatrix
    from vitral.formats.quantize import TensorError

__all__ = ["quantize"]

_SHOWN = 15


def quantize(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    out: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
    type: Annotated[str, typer.Option("--type", help="Q4_K_M, Q5_K_M, Q6_K, Q8_0, Q4_0, IQ4_XS, F16 ...")] = "Q4_K_M",
    pure: Annotated[bool, typer.Option("--pure", help="All matrices in the one type, without a mix.")] = False,
    importance: Annotated[
        Path | None, typer.Option(help="A text to measure the importance of columns on, or an imatrix file.")
    ] = None,
    save_importance: Annotated[Path | None, typer.Option(help="Keep what was measured, as an imatrix file.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Read so many windows of 512 tokens of the text.")] = None,
    split_gb: SplitGb = None,
    as_json: AsJson = False,
) -> None:
    """Quantise a model to GGUF and report the error of each tensor."""
    from vitral.formats.mixes import file_type

    kind = file_type(type)  # before anything that takes long
    if importance is None and (save_importance or windows):
        raise RequestError("--save-importance and --windows belong to --importance; give it a text")
    imatrix = None if importance is None else _importance(model, importance, windows, save_importance)
    errors = write(model, out, Layout.GGUF, kind.name, imatrix, pure=pure, split_bytes=split_bytes(split_gb))
    for line in _remarks(errors, imatrix):
        tell(line)
    if as_json:
        measured = None if imatrix is None else {"datasets": list(imatrix.datasets), "windows": imatrix.n_windows}
        print_json(
            {"path": out, "type": kind.name, "pure": pure, "importance": measured,
             "tensors": [asdict(error) for error in errors]}
        )  # fmt: skip
        return
    worst = sorted(errors, key=lambda error: -error.relative)[:_SHOWN]
    columns = ["tensor", "type", "relative", "rms", "largest"]
    rows = [[e.name, e.type, f"{e.relative:.4%}", f"{e.rmse:.3g}", f"{e.largest:.3g}"] for e in worst]
    if imatrix is not None:
        columns.append("weighted")
        rows = [[*row, "-" if e.weighted is None else f"{e.weighted:.4%}"] for row, e in zip(rows, worst, strict=True)]
    table(f"{out}: the largest errors of {len(errors)} tensors", columns, rows, numbers=columns[2:])


def _importance(model: str, given: Path, windows: int | None, keep: Path | None) -> Imatrix:
    """Read an imatrix file, or measure on a text with a progress bar."""
    from vitral import hub
    from vitral.formats.imatrix import is_imatrix, read_imatrix, write_imatrix
    from vitral.importance import measure

    if is_imatrix(given):
        if windows or keep:
            raise RequestError(f"{given} is measured already; --windows and --save-importance go with a text")
        return read_imatrix(given)
    try:
        text = given.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{given} cannot be read as UTF-8 text or imatrix file: {error}") from None
    with progress_bar("windows") as bar:
        found = measure(hub.admitted(model), text, most_windows=windows, dataset=given.name, progress=bar)
    if keep is not None:
        write_imatrix(keep, found)
    return found


def _remarks(errors: Sequence[TensorError], imatrix: Imatrix | None) -> list[str]:
    """What is not as the asker may think, one line for each kind."""
    lines = [
        f"{n} tensors are {got} instead of {asked}, whose blocks do not fit their rows"
        for (asked, got), n in Counter((e.fallback_from, e.type) for e in errors if e.fallback_from).items()
    ]
    again = sum(error.requantised for error in errors)
    if again:
        lines.append(f"{again} tensors were quantised before: their old errors stay; take the original if you can")
    if imatrix is not None:
        without = [e for e in errors if e.weighted is None and e.bits_per_weight < 16]
        if without:
            lines.append(f"{len(without)} quantised tensors have no importance, such as {without[0].name}")
        if imatrix.skipped:
            lines.append(
                f"{len(imatrix.skipped)} entries of the imatrix file fit no tensor, such as {imatrix.skipped[0]}"
            )
    return lines
