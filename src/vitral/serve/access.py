"""Who asks: bootstrap keys, kept as hashes.

A key is 256 random bits, so one SHA-256 is enough: there is nothing to guess. Each has a name, which is the tenant
whose requests share the prefix cache and whose records belong together.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitral.errors import SettingsError
from vitral.serve.faults import ApiError

__all__ = ["Caller", "KeyRing", "Permission"]

Permission = Literal["public", "infer", "observe", "admin"]
"""public: anyone. infer: ask models, see one's own. observe: what the machine does (metrics, engine). admin: change what
is served."""

LOCAL = "local"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LONGEST_KEY = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. `tenant` parts caches, records and files."""

    tenant: str
    permissions: frozenset[Permission]


class KeyRing:
    """The keys in a file; without any, everyone is the local user.

    >>> import tempfile
    >>> ring = KeyRing(Path(tempfile.mkdtemp()) / "keys.json")
    >>> key = ring.add("anna")
    >>> ring.identify({"authorization": f"Bearer {key}"}).tenant
    'anna'
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes: dict[str, bytes] = {}
        self._admins: set[str] = set()
        if path.exists():
            try:
                stored = json.loads(path.read_text("utf-8"))
                for name, kept in stored.items():  # a bare digest, or an object that says more
                    more = {"sha256": kept} if isinstance(kept, str) else kept
                    self._hashes[name] = bytes.fromhex(more["sha256"])
                    if more.get("admin") is True:
                        self._admins.add(name)
            except (KeyError, TypeError, OSError, ValueError, AttributeError) as error:
                raise SettingsError(
                    f"the keys in {path} cannot be read: {error}; remove the file and make new ones"
                ) from None

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, name: str, *, admin: bool = False) -> str:
        """A new key, told once. A name that has a key gets a new one, and the old one is void.

        admin: whether it may also change what is served.
        """
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise SettingsError(f"the key's name is {name!r}; allowed: 1 to 40 of a-z 0-9 _ -, and not {LOCAL!r}")
        key = "vk-" + secrets.token_urlsafe(32)
        self._hashes[name] = _hash(key)
        (self._admins.add if admin else self._admins.discard)(name)
        kept = {
            name: {"sha256": digest.hex(), "admin": True} if name in self._admins else digest.hex()
            for name, digest in self._hashes.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(kept), "utf-8")
        partial.replace(self._path)
        return key

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller by `Authorization: Bearer` or `x-api-key`; ApiError 401 for none or a wrong one."""
        if not self._hashes:
            return Caller(LOCAL, frozenset(("infer", "observe", "admin")))
        key = _credential(headers)
        given = _hash(key)
        found = None
        for name, digest in self._hashes.items():  # all of them, always: time tells nothing
            if hmac.compare_digest(digest, given):
                found = name
        if found is None:
            raise ApiError(401, "invalid_api_key", "the API key is not known here; check it or ask for a new one")
        permissions: tuple[Permission, ...] = (
            ("infer", "observe", "admin") if found in self._admins else ("infer", "observe")
        )
        return Caller(found, frozenset(permissions))


def _credential(headers: Mapping[str, str]) -> str:
    bearer, api_key = headers.get("authorization"), headers.get("x-api-key")
    if bearer is not None and api_key is not None and bearer != f"Bearer {api_key}":
        raise ApiError(400, "two_credentials", "both Authorization and x-api-key are given and differ; send one")
    if api_key is None:
        if bearer is None:
            raise ApiError(401, "missing_api_key", "no API key was sent; give it as 'Authorization: Bearer KEY'")
        scheme, _, api_key = bearer.partition(" ")
        if scheme.lower() != "bearer":
            raise ApiError(401, "invalid_api_key", "the Authorization header is no 'Bearer KEY'")
    return api_key[:_LONGEST_KEY]


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
