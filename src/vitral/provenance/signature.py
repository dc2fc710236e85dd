"""Signatures of whole models with keys of one's own, in the format of OpenSSF model signing; no network.

A signature is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists the SHA-256 of every
file. The library `model-signing` writes and checks it (extra `sign`), so its own command line verifies what is
signed here and the other way round. Unlike that command, files such as `.gitattributes` are signed too.

Source: https://github.com/sigstore/model-transparency, predicate `https://model_signing/signature/v1.0`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from vitral.errors import ModelNotFound, SettingsError, SignatureError
from vitral.provenance.digest import digest_files, model_files
from vitral.provenance.manifest import differences
from vitral.verdict import Verdict

__all__ = ["make_key", "sign", "signature_path", "verify"]

_CURVES = ("P-256", "P-384", "P-521")


def signature_path(model: Path) -> Path:
    """Where a model's signature is if nobody says otherwise: `model.sig` in a folder, `NAME.sig` beside a file."""
    return model / "model.sig" if model.is_dir() else model.with_name(model.name + ".sig")


def make_key(private: Path) -> Path:
    """Write a new P-256 key (PEM, readable by its owner alone) and its public half, NAME.pub; returns the latter."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise SettingsError(f"{path} is there already; a key is never overwritten, give another name")
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(model: Path, private_key: Path, signature: Path | None = None) -> Path:
    """Sign every file of a model with a private key (PEM, elliptic curve); returns the signature's path.

    Raises SignatureError for a key that cannot be used, SettingsError without the extra `sign`.
    """
    signing, hashing = _library("signing"), _library("hashing")
    signature = signature or signature_path(model)
    _must_exist(model, private_key)
    hashes = hashing.Config().set_ignored_paths(paths=_ignored(model, signature), ignore_git_paths=False)
    config = signing.Config().set_hashing_config(hashes)
    _call(lambda: config.use_elliptic_key_signer(private_key=private_key), private_key)
    try:
        config.sign(model, signature)
    except (ValueError, OSError) as error:
        raise SignatureError(f"{model} cannot be signed: {_line(error)}") from None
    return signature


def verify(model: Path, public_key: Path, signature: Path | None = None) -> Verdict:
    """Whether a model is, file by file, what the owner of a key signed; every difference is a reason.

    A file without a signature of its own in a folder that has one is verified with its whole folder. Raises SignatureError where there is no signature or the key cannot be read.
    """
    verifying = _library("verifying")
    if signature is None and model.is_file() and not signature_path(model).is_file():
        model = model.parent if signature_path(model.parent).is_file() else model
    signature = signature or signature_path(model)
    _must_exist(model, public_key)
    if not signature.is_file():
        raise SignatureError(f"{model} has no signature at {signature}; sign it, or say where the signature is")
    config = verifying.Config()
    _call(lambda: config.use_elliptic_key_verifier(public_key=public_key), public_key)
    evidence = {"model": str(model), "signature": str(signature), "key": str(public_key)}
    ignored = _ignored(model, signature)
    if ignored:
        hashing = _library("hashing")
        config.set_hashing_config(
            hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=_skips_git(signature))
        )
    from cryptography.exceptions import InvalidSignature

    try:
        config.verify(model, signature)
    except (InvalidSignature, ValueError, KeyError, TypeError, OSError) as error:
        return Verdict(False, tuple(_reasons(error, model, signature)), evidence)
    return Verdict(True, (f"every file is what was signed with {public_key.name}",), evidence)


def _reasons(error: Exception, model: Path, signature: Path) -> list[str]:
    """What differs, a sentence each: the library found that something does."""
    if str(error).startswith("Signature mismatch: "):
        if model.is_file():
            return [f"{model.name} was changed"]
        statement = _statement(signature)["predicate"]
        wanted = {one["name"]: one["digest"] for one in statement["resources"]}
        aside = {*statement["serialization"].get("ignore_paths", ()), *map(str, _ignored(model, signature))}
        files = {name: path for name, path in model_files(model).items() if not _lies_under(name, aside)}
        found = {name: one.sha256 for name, one in digest_files(files).items()}
        if reasons := differences(wanted, found):
            return reasons
    return [f"the signature was not made with this key, or was changed ({_line(error) or type(error).__name__})"]


def _lies_under(name: str, paths: Collection[str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in paths)


def _statement(signature: Path) -> dict[str, Any]:
    """What was signed; only to be believed once the library has verified the signature."""
    statement: dict[str, Any] = json.loads(
        base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"])
    )
    return statement


def _ignored(model: Path, signature: Path) -> list[Path]:
    """The signature itself, if it lies in the folder that it signs."""
    inside = model.is_dir() and signature.resolve().is_relative_to(model.resolve())
    return [signature.resolve().relative_to(model.resolve())] if inside else []


def _skips_git(signature: Path) -> bool:
    """Whether whoever signed left Git's files out, as the library's own command does."""
    try:
        return ".gitattributes" in _statement(signature)["predicate"]["serialization"].get("ignore_paths", [])
    except (ValueError, KeyError, TypeError):
        return False  # the library will say what is wrong with it


def _must_exist(model: Path, key: Path) -> None:
    if not model.exists():
        raise ModelNotFound(f"{model} does not exist; give a model file or folder")
    if not key.is_file():
        raise SignatureError(f"there is no key at {key}; `vitral sign --new-key {key.name}` makes one")


def _call(use: Callable[[], Any], key: Path) -> None:
    try:
        use()
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"{key} is no key that can be used ({_line(error)}); curves: {', '.join(_CURVES)}"
        ) from None


def _library(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise SettingsError(
            f"signatures need libraries that are not installed ({error.name or error}): pip install 'vitral[sign]'"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
