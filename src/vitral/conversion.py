"""Converting a model together with its tokenizer: what joins `formats`, which knows no text, and `tokenizer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitral.errors import FormatError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import TokenizerFiles
from vitral.formats.convert import convert as convert_weights
from vitral.formats.imatrix import Imatrix
from vitral.provenance.gate import admit
from vitral.provenance.lineage import lineage_metadata
from vitral.settings import read_settings

if TYPE_CHECKING:
    from vitral.formats.quantize import TensorError

__all__ = ["convert", "tokenizer_files"]

Layout = Literal["gguf", "safetensors"]


def convert(
    src: Path,
    dst: Path,
    layout: Layout = "gguf",
    type: str | None = None,
    importance: Imatrix | None = None,
    progress: Callable[[int, int], object] | None = None,
    split_bytes: int | None = None,
    pure: bool = False,
) -> list[TensorError]:
    """Write the model at `src`, tokenizer and chat template included, as one GGUF file or a safetensors folder.

    For the parameters see `vitral.formats.convert.convert`. Raises TokenizerError where the model has
    a tokenizer that the new layout cannot hold; a model without one is written without. Raises UnsafeFile for what
    a scan refuses (`vitral.provenance.gate`).
    """
    if layout not in ("gguf", "safetensors"):
        raise FormatError(f"layout {layout!r} is not written; allowed: gguf, safetensors")
    admit(Path(src), read_settings().home, read_settings().verify_key)
    return convert_weights(
        src,
        dst,
        layout=layout,
        type=type,
        importance=importance,
        progress=progress,
        tokenizer=tokenizer_files(Path(src), layout),
        split_bytes=split_bytes,
        pure=pure,
        notes=lineage_metadata(open_checkpoint(Path(src)), "convert", {"layout": layout, "type": type or "as it was"}),
    )


def tokenizer_files(src: Path, layout: Layout) -> TokenizerFiles | None:
    """The tokenizer of a checkpoint in the words of the new layout; None where formats copies it, or there is none."""
    from vitral.tokenizer.export import to_files, to_gguf
    from vitral.tokenizer.load import _VOCABULARIES, load_tokenizer

    checkpoint = open_checkpoint(src)
    if checkpoint.layout == "gguf":
        if layout == "gguf" or "tokenizer.ggml.model" not in checkpoint.metadata:
            return None
        return TokenizerFiles(files=to_files(load_tokenizer(checkpoint.metadata)))
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None
    tokenizer = load_tokenizer(folder)
    return TokenizerFiles(gguf=to_gguf(tokenizer)) if layout == "gguf" else TokenizerFiles(files=to_files(tokenizer))
