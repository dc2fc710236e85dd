"""Where fetched models live: files by name, each with its digest, in one folder under VITRAL_HOME.

Nothing half-fetched is ever visible: files are gathered in a folder of their own and take their
place in one rename, after their digests are known. The index is replaced, never edited.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitral.errors import HubError, ModelNotFound

__all__ = ["Entry", "Store"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in the store.

    files: SHA-256 by file name. main: the file to open, or "" for the folder. source: where it came from.
    """

    name: str
    folder: str
    main: str
    files: Mapping[str, str]
    n_bytes: int
    source: str
    fetched: str


class Store:
    """The models under `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.models = home / "models"
        self._index = home / "index.json"

    def entries(self) -> dict[str, Entry]:
        """Every model by name."""
        if not self._index.exists():
            return {}
        try:
            found = json.loads(self._index.read_text("utf-8"))
            return {name: Entry(**fields) for name, fields in found["models"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(f"{self._index} cannot be read ({error}); delete it and fetch the models again") from None

    def path(self, name: str) -> Path | None:
        """Where a model's file or folder is, or None if the store does not have it."""
        entry = self.entries().get(name)
        if entry is None:
            return None
        path = self.models / entry.folder / entry.main
        if not path.exists():
            raise HubError(f"{name} is in the index but not at {path}; run: vitral rm {name}, then vitral pull {name}")
        return path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder beside the models to fetch into; what is left in it afterwards is deleted."""
        self.models.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fetching-", dir=self.models))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, staged: Path, main: str, source: str) -> Path:
        """Give a folder of complete files its place and its name; returns what to open."""
        from vitral.provenance.digest import sha256_of

        files = {str(p.relative_to(staged)): p for p in sorted(staged.rglob("*")) if p.is_file()}
        digests = {file: sha256_of(path) for file, path in files.items()}
        n_bytes = sum(path.stat().st_size for path in files.values())
        slug = "".join(c if c.isalnum() or c in "-._" else "-" for c in name).strip(".")
        with self._locked():
            folder = f"{slug}-{hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]}"
            final = self.models / folder
            if not final.exists():
                staged.rename(final)
            entries = self.entries()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entries[name] = Entry(name, folder, main, digests, n_bytes, source, now)
            self._write(entries)
        return final / main

    def remove(self, name: str) -> Entry:
        """Forget a model and delete its files, unless another name shares them."""
        with self._locked():
            entries = self.entries()
            if name not in entries:
                known = ", ".join(entries) or "nothing"
                raise ModelNotFound(f"the store has no model {name!r}; it has: {known}")
            entry = entries.pop(name)
            self._write(entries)
            if all(other.folder != entry.folder for other in entries.values()):
                shutil.rmtree(self.models / entry.folder)
        return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, entries: Mapping[str, Entry]) -> None:
        text = json.dumps({"version": 1, "models": {name: asdict(entry) for name, entry in entries.items()}}, indent=1)
        temporary = self._index.with_suffix(".new")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, self._index)
