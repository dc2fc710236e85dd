"""`vitral convert`: a checkpoint from one layout to another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar, tell
from vitral.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from vitral.formats.imatrix import Imatrix
    from vitral.formats.quantize import TensorError

__all__ = ["Layout", "SplitGb", "convert", "split_bytes", "write"]

SplitGb = Annotated[
    float | None, typer.Option("--split-gb", help="Divide a GGUF model over files of at most so many GB.")
]


class Layout(StrEnum):
    """The layouts that are written."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


def convert(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    out: Annotated[Path, typer.Argument(help="The file (.gguf) or folder (safetensors) to write.")],
    layout: Annotated[Layout, typer.Option(help="The layout to write.")] = Layout.GGUF,
    type: Annotated[str | None, typer.Option("--type", help="F32, F16 or BF16 instead of the types it has.")] = None,
    split_gb: SplitGb = None,
    as_json: AsJson = False,
) -> None:
    """Write a model in another layout with the same values."""
    if split_gb is not None and layout is not Layout.GGUF:
        raise RequestError("--split-gb is for GGUF; safetensors are divided by themselves, at 5 GB")
    errors = write(model, out, layout, type, split_bytes=split_bytes(split_gb))
    if as_json:
        print_json({"path": out, "layout": layout, "tensors": len(errors)})
    else:
        console.print(f"{out}: {len(errors)} tensors in the layout {layout}", highlight=False, soft_wrap=True)


def split_bytes(split_gb: float | None) -> int | None:
    """Gigabytes as bytes; RequestError for what no file can be."""
    if split_gb is None:
        return None
    if not 0 < split_gb <= 1e6:
        raise RequestError(f"--split-gb is {split_gb}; allowed: above 0 and at most a million")
    return max(1, int(split_gb * 1e9))


def write(
    model: str,
    out: Path,
    layout: Layout,
    type: str | None,
    importance: Imatrix | None = None,
    *,
    pure: bool = False,
    split_bytes: int | None = None,
) -> list[TensorError]:
    """Convert with a progress bar, the tokenizer included; says so where there is none to carry."""
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.formats.convert import TokenizerFiles
    from vitral.formats.convert import convert as convert_file
    from vitral.formats.quants import TYPES
    from vitral.loading import tokenizer_of
    from vitral.provenance.lineage import lineage_metadata
    from vitral.tokenizer.export import to_files, to_gguf

    source = hub.admitted(model)
    checkpoint = open_checkpoint(source)
    operation = "quantise" if type and TYPES.get(type, TYPES["Q8_0"]).block > 1 else "convert"
    entry = hub.store().entries().get(model)
    notes = lineage_metadata(
        checkpoint, operation, {"layout": layout.value, "type": type or "as it was"}, entry.source if entry else None
    )
    try:
        tokenizer = tokenizer_of(checkpoint)
        files = TokenizerFiles(to_gguf(tokenizer), to_files(tokenizer))
    except TokenizerError as error:
        tell(f"written without a tokenizer: {error}")
        files = None
    with progress_bar("tensors") as bar:
        return convert_file(
            source,
            out,
            layout.value,
            type,
            importance,
            bar,
            tokenizer=files,
            split_bytes=split_bytes,
            pure=pure,
            notes=notes,
        )
