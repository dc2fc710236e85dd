"""`vitral digest`: what a model's bytes are, file by file or tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar, size_text, table, tell
from vitral.cli.scan import exit_with

__all__ = ["digest"]


def digest(
    model: Annotated[str, typer.Argument(help="A file or folder, a short name, or hf:owner/name.")],
    weights: Annotated[bool, typer.Option("--weights", help="The weights too: the same in every layout.")] = False,
    gguf: Annotated[
        bool,
        typer.Option("--gguf-hash", help="The sums that llama.cpp's gguf-hash prints; with --check, a manifest of it."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write a manifest to this file.")] = None,
    check: Annotated[Path | None, typer.Option(help="Compare with a manifest; exit code 1 names what differs.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Files that are read at once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Digest every file of a model, and its weights by themselves."""
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.provenance.digest import digest_files, gguf_differences, gguf_hash, model_files
    from vitral.provenance.manifest import check as compare
    from vitral.provenance.manifest import manifest_text

    path = hub.resolve(model)
    if check is not None and gguf:
        found = gguf_differences(path, check)
        if as_json:
            print_json({"passed": not found, "reasons": found, "manifest": str(check)})
        else:
            console.print("\n".join(found) or "every sum is that of the manifest", highlight=False, markup=False)
        exit_with(not found)
        return
    if check is not None:
        with progress_bar("bytes") as bar:
            verdict = compare(path, check, threads, bar)
        if as_json:
            print_json({"passed": verdict.passed, "reasons": verdict.reasons, **verdict.evidence})
        else:
            console.print("\n".join(verdict.reasons), highlight=False, markup=False, soft_wrap=True)
        exit_with(verdict.passed)
        return
    if gguf:
        sums = gguf_hash(path)
        if "xxh64" not in sums.whole:
            tell("without xxh64, which needs a library: pip install 'vitral[sign]'")
        if as_json:
            print_json(asdict(sums))
        else:
            console.print("\n".join(sums.lines(path.name)), highlight=False, markup=False, soft_wrap=True)
        return
    with progress_bar("bytes") as bar:
        files = digest_files(model_files(path), threads, bar)
    with progress_bar("tensors") as bar:
        whole = open_checkpoint(path).weights.digest(threads, bar) if weights else None
    if out is not None:
        out.write_text(manifest_text(files, whole), "utf-8")
    if as_json:
        print_json({"files": {name: asdict(one) for name, one in files.items()}, "weights": whole})
        return
    table(str(path), ["file", "size", "SHA-256"], [(n, size_text(f.n_bytes), f.sha256) for n, f in files.items()],
          numbers=["size"])  # fmt: skip
    if whole is not None:
        console.print(f"weights {whole}", highlight=False, soft_wrap=True)
