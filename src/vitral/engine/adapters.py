"""Adapters that are loaded: each has a number, by which the tokens of a step name theirs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vitral.errors import RequestError
from vitral.model.law import LowRank

if TYPE_CHECKING:
    from vitral.formats.adapters import Adapter
    from vitral.provenance.bases import BaseEvidence

__all__ = ["Adapters", "LoadedAdapter", "TakesAdapters"]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in memory, for `Engine.answer`. base: how it is known that it is for this model, if that was asked."""

    number: int
    name: str
    digest: str
    n_bytes: int = 0
    base: BaseEvidence | None = None

    def salt(self, salt: bytes) -> bytes:
        """A request's salt with this adapter: its keys and values are other ones."""
        return hashlib.sha256(salt + b"\0adapter\0" + self.digest.encode()).digest()


@runtime_checkable
class TakesAdapters(Protocol):
    """A `Forward` that computes with adapters."""

    def set_adapter(self, number: int, parts: Mapping[str, LowRank]) -> None:
        """Load one; a batch names it by its number from now on."""
        ...

    def remove_adapter(self, number: int) -> None:
        """Give its memory back."""
        ...


class _Users(Protocol):
    def uses_adapter(self, number: int) -> bool: ...


class Adapters:
    """Loads and unloads while requests run. Several threads may use it."""

    def __init__(self, forward: TakesAdapters, engine: _Users) -> None:
        self._forward = forward
        self._engine = engine
        self._loaded: dict[str, LoadedAdapter] = {}
        self._next = 0
        self._lock = threading.Lock()

    def load(self, name: str, adapter: Adapter, base: BaseEvidence | None = None) -> LoadedAdapter:
        """Load under a name; RequestError if the name is taken."""
        with self._lock:
            if name in self._loaded:
                raise RequestError(f"an adapter is called {name} already; unload it first, or choose another name")
            loaded = LoadedAdapter(self._next, name, adapter.digest, adapter.n_bytes, base)
            self._forward.set_adapter(loaded.number, adapter.parts)
            self._next += 1
            self._loaded[name] = loaded
            return loaded

    def unload(self, name: str) -> None:
        """Give its memory back; RequestError if there is none, or if requests with it have not ended."""
        with self._lock:
            loaded = self._find(name)
            if self._engine.uses_adapter(loaded.number):
                raise RequestError(f"requests with the adapter {name} have not ended; wait or cancel them first")
            self._forward.remove_adapter(loaded.number)
            del self._loaded[name]

    def find(self, name: str) -> LoadedAdapter:
        """By its name; RequestError names those that are loaded."""
        with self._lock:
            return self._find(name)

    def names(self) -> list[str]:
        """All that are loaded, in the order of loading."""
        with self._lock:
            return list(self._loaded)

    def _find(self, name: str) -> LoadedAdapter:
        if name not in self._loaded:
            raise RequestError(f"no adapter is called {name!r}; loaded: {', '.join(self._loaded) or 'none'}")
        return self._loaded[name]
