"""A DSSE envelope signed with Ed25519: who says so, over which bytes.

    signature = Ed25519("DSSEv1" SP len(type) SP type SP len(payload) SP payload)

Envelope and payload are canonical JSON (RFC 8785), so each document has one form in bytes and any other byte is found.
Source: https://github.com/secure-systems-lab/dsse (protocol 1.0.2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vitral.errors import FormatError, SettingsError, SignatureError
from vitral.formats.json_text import parse_object

__all__ = [
    "PAYLOAD_TYPE",
    "Envelope",
    "canonical",
    "key_id",
    "make_key",
    "read_envelope",
    "read_private_key",
    "read_public_key",
    "seal",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_LARGEST = 256 << 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope that was read. `places`: what in it is not as it was written. `signatures`: (key id, bytes)."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    places: tuple[str, ...]

    def fits(self, key: Ed25519PublicKey) -> bool | None:
        """Whether this key made one of the signatures; None if none claims to be of this key."""
        id = key_id(key)
        claimed = [signature for whose, signature in self.signatures if whose == id]
        if not claimed:
            return None
        try:
            for signature in claimed:
                key.verify(signature, _message(self.payload))
        except InvalidSignature:
            return False
        return True


def canonical(value: Any) -> bytes:
    """RFC 8785. Raises FormatError for what has no such form (a number beyond 2^53, infinity)."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise FormatError(f"no canonical JSON: {error}") from None


def make_key(private: Path) -> Path:
    """Write a new Ed25519 key (PEM, readable by its owner alone) and its public half, NAME.pub; returns the latter."""
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise SettingsError(f"{path} is there already; a key is never overwritten, give another name")
    key = Ed25519PrivateKey.generate()
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    return public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """SignatureError for a file that holds no Ed25519 key."""
    try:
        key = pem.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} cannot be read as a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} is no Ed25519 key; `vitral evidence --new-key FILE` makes one")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """SignatureError for a file that holds no Ed25519 public key."""
    try:
        key = pem.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} cannot be read as a public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} is no Ed25519 key; evidence is signed with one of `vitral evidence --new-key`")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the 32 bytes of the public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def seal(statement: Mapping[str, Any], key: Ed25519PrivateKey | None) -> bytes:
    """The envelope of a statement, one line; without a key it has no signature.

    >>> read_envelope(seal({"a": 1}, None), "x").payload
    b'{"a":1}'
    """
    payload = canonical(statement)
    signatures = []
    if key is not None:
        signature = base64.b64encode(key.sign(_message(payload))).decode()
        signatures.append({"keyid": key_id(key.public_key()), "sig": signature})
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": signatures,
    }
    return canonical(envelope) + b"\n"


def read_envelope(data: bytes, source: object) -> Envelope:
    """Take an envelope apart. FormatError for what is none at all; a byte out of place is in `places`."""
    if len(data) > _LARGEST:
        raise FormatError(f"{source} has {len(data)} bytes; evidence of at most {_LARGEST} is read")
    found = parse_object(data, source)
    payload, kind, signatures = (found.get(name) for name in ("payload", "payloadType", "signatures"))
    if not (isinstance(payload, str) and isinstance(kind, str) and isinstance(signatures, list)):
        raise FormatError(f"{source} is no DSSE envelope: payload, payloadType and signatures are wanted")
    places = []
    if kind != PAYLOAD_TYPE:
        places.append(f"/payloadType: {kind[:80]!r}; {PAYLOAD_TYPE!r} is wanted")
    read = []
    for index, each in enumerate(signatures):
        if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in ("keyid", "sig")):
            raise FormatError(f"{source}: /signatures/{index} needs the texts keyid and sig")
        read.append((each["keyid"], _decoded(each["sig"], f"{source}: /signatures/{index}/sig")))
    if data != canonical(found) + b"\n":
        written = canonical(found) + b"\n"
        at = next((i for i, (a, b) in enumerate(zip(data, written)) if a != b), min(len(data), len(written)))
        places.append(f"envelope, byte {at}: not canonical JSON with one line break at its end")
    if found.keys() - {"payload", "payloadType", "signatures"}:
        places.append(f"envelope: a key that is not ours, {sorted(found.keys())}")
    return Envelope(_decoded(payload, f"{source}: /payload"), tuple(read), tuple(places))


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where} is not base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{where} is not base64 in its one form; a byte was changed near its end")
    return data


def _message(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
