"""`vitral sign` and `vitral verify`: a model with a signature of one's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json
from vitral.cli.scan import exit_with

__all__ = ["sign", "verify"]

Signature = Annotated[Path | None, typer.Option(help="The signature's file: model.sig in the folder, or FILE.sig.")]


def sign(
    model: Annotated[str | None, typer.Argument(help="A file or folder, a short name, or hf:owner/name.")] = None,
    key: Annotated[Path | None, typer.Option(help="The private key, PEM, of an elliptic curve.")] = None,
    new_key: Annotated[Path | None, typer.Option(help="Make a key (and FILE.pub) instead of signing.")] = None,
    signature: Signature = None,
    as_json: AsJson = False,
) -> None:
    """Sign every file of a model with a key of your own."""
    from vitral import hub
    from vitral.errors import SettingsError
    from vitral.provenance.signature import make_key
    from vitral.provenance.signature import sign as write

    if new_key is not None:
        public = make_key(new_key)
        if as_json:
            print_json({"private": new_key, "public": public})
        else:
            console.print(
                f"{new_key} signs, {public} verifies; keep the first to yourself", highlight=False, soft_wrap=True
            )
        return
    if model is None or key is None:
        raise SettingsError("vitral sign wants a model and --key FILE, or --new-key FILE to make a key")
    written = write(hub.resolve(model), key, signature)
    if as_json:
        print_json({"signature": written})
    else:
        console.print(f"signed: {written}", highlight=False, soft_wrap=True)


def verify(
    model: Annotated[
        str, typer.Argument(help="A model (file, folder, short name, hf:owner/name) or an evidence document.")
    ],
    key: Annotated[Path | None, typer.Option(help="The public key, PEM.")] = None,
    signature: Signature = None,
    weights: Annotated[
        str | None, typer.Option("--model", help="For evidence: the model; the record's name if not said.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="For evidence: the adapter that made the answer.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="For evidence: threads that compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model is what was signed, or evidence is exact.

    A model: names every file that was changed, added, removed or renamed; exit code 1 if there is one. Evidence: runs
    the answer again on this machine; EXACT, or what was CHANGED or DIVERGED (exit code 1), or is MISSING (3).
    """
    from vitral import hub
    from vitral.errors import SettingsError
    from vitral.lens.evidence import is_evidence
    from vitral.provenance.signature import verify as check

    if is_evidence(Path(model)):
        if signature is not None:
            raise SettingsError("evidence holds its own signature; leave --signature out")
        _verify_evidence(Path(model), key, weights, adapter, threads, as_json)
        return
    if given := [n for n, v in (("--model", weights), ("--adapter", adapter), ("--threads", threads)) if v is not None]:
        raise SettingsError(
            f"{', '.join(given)} is for evidence, and {model} is none, or too damaged to be known as it (a JSON object "
            "that ends with its signatures); for a model leave it out"
        )
    if key is None:
        raise SettingsError("the signature of a model is verified with --key FILE, the public key")
    verdict = check(hub.resolve(model), key, signature)
    if as_json:
        print_json({"passed": verdict.passed, "reasons": verdict.reasons, **verdict.evidence})
    else:
        console.print("\n".join(verdict.reasons), highlight=False, markup=False, soft_wrap=True)
    exit_with(verdict.passed)


def _verify_evidence(
    file: Path, key: Path | None, model: str | None, adapter: Path | None, threads: int | None, as_json: bool
) -> None:
    from vitral.lens.envelope import read_public_key
    from vitral.serve.proof import judge

    public = None if key is None else read_public_key(key)
    found = judge(file.read_bytes(), file, key=public, model=model, adapter=adapter, threads=threads)
    if as_json:
        print_json({"verdict": found.verdict, "reasons": found.reasons, "record": found.record, "notes": found.notes})
    else:
        lines = (f"{found.verdict} {found.reasons[0]}", *found.reasons[1:], *(f"note: {each}" for each in found.notes))
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    exit_with({"EXACT": True, "MISSING": None}.get(found.verdict, False))
