"""Which version of Vitral this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["version"]


def version() -> str:
    """The version as installed, or what to call a source tree that is not."""
    try:
        return metadata.version("vitral")
    except metadata.PackageNotFoundError:
        return "run from its source folder, not installed"
