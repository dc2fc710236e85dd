"""Which Vitral this is: its version, and a digest of the compiled kernels."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata

__all__ = ["kernels_digest", "version"]


@cache
def version() -> str:
    """The installed version, or "uninstalled" where the sources run without having been installed."""
    try:
        return metadata.version("vitral")
    except metadata.PackageNotFoundError:
        return "uninstalled"


@cache
def kernels_digest() -> str:
    """SHA-256 (hex) of the compiled extension: the code that decided the bits."""
    from vitral.native import _core

    with open(_core.__file__, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
