"""Where models live: by path, by short name, or by `hf:owner/name`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitral.hub.store import Entry, Store
from vitral.settings import read_settings

if TYPE_CHECKING:
    from vitral.formats.canonical import Checkpoint
    from vitral.hub.remote import Progress
    from vitral.provenance.scan import Scan

__all__ = ["Entry", "Store", "admitted", "at_hand", "open_admitted", "pull", "resolve", "short_names", "store"]


def store() -> Store:
    """The store under VITRAL_HOME."""
    return Store(read_settings().home)


def pull(name: str, progress: Progress = lambda line: None) -> Path:
    """The file or folder of a model, fetched and verified if the store does not have it yet.

    Raises ModelNotFound, DigestMismatch, or HubError where it cannot be fetched.
    """
    here = store()
    if (path := here.path(name)) is not None:
        return path
    from vitral.hub.remote import fetch  # what is here needs no network

    return fetch(here, name, progress)


def short_names() -> dict[str, str]:
    """Every short name and what it is."""
    from vitral.hub import remote

    return remote.short_names()


def at_hand(name: str) -> Path | None:
    """Where a model of the store is, by its name there or by owner/name; None where it is not, and nothing is fetched."""
    here = store()
    for entry in here.entries().values():
        source = entry.source.removeprefix("hf:").partition("@")[0].partition(":")[0]
        if name.lower() in (entry.name.lower(), source.lower()):
            return here.path(entry.name)
    return None


def resolve(name: str) -> Path:
    """The file or folder that a path or a name stands for; a name that is not in the store is fetched."""
    path = Path(name).expanduser()
    return path if path.exists() else pull(name)


def admitted(name: str, verify_key: str | Path | None = None) -> Path:
    """What `resolve` gives, if it may be opened: nothing that a scan refuses, signed where a signature is asked for.

    verify_key: a public key (PEM); VITRAL_VERIFY_KEY, or none. Raises UnsafeFile and SignatureError.
    """
    return _admitted(name, verify_key)[0]


def open_admitted(name: str, verify_key: str | Path | None = None) -> Checkpoint:
    """The checkpoint that `admitted` lets in, opened as it was scanned: a GGUF file is read once.

    Raises what `admitted` and `open_checkpoint` raise.
    """
    from vitral.formats.checkpoint import open_checkpoint

    path, found = _admitted(name, verify_key)
    return open_checkpoint(path, found.gguf)


def _admitted(name: str, verify_key: str | Path | None) -> tuple[Path, Scan]:
    from vitral.provenance.gate import admit

    path, settings = resolve(name), read_settings()
    return path, admit(path, settings.home, Path(verify_key) if verify_key is not None else settings.verify_key)
