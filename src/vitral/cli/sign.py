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
    model: Annotated[str, typer.Argument(help="A file or folder, a short name, or hf:owner/name.")],
    key: Annotated[Path, typer.Option(help="The public key, PEM.")],
    signature: Signature = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model is what was signed.

    Names every file that was changed, added, removed or renamed; exit code 1 if there is one.
    """
    from vitral import hub
    from vitral.provenance.signature import verify as check

    verdict = check(hub.resolve(model), key, signature)
    if as_json:
        print_json({"passed": verdict.passed, "reasons": verdict.reasons, **verdict.evidence})
    else:
        console.print("\n".join(verdict.reasons), highlight=False, markup=False, soft_wrap=True)
    exit_with(verdict.passed)
