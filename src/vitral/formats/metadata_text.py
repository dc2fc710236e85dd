"""Texts in a stranger's metadata, where anything may stand instead, arrays included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["first_text"]


def first_text(metadata: Mapping[str, Any], *keys: str) -> str | None:
    """The text under the first of `keys` that holds one.

    >>> first_text({"general.license": [1, 2], "license": "mit"}, "general.license", "license")
    'mit'
    """
    return next((value for key in keys if isinstance(value := metadata.get(key), str) and value), None)
