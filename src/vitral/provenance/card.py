"""The facts in front of a model card: YAML from strangers, bounded, without references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitral.errors import FormatError

__all__ = ["read_card", "read_yaml"]

_LARGEST = 1 << 20


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML that refuses references, with which a few lines can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*) are not allowed")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def read_card(path: Path) -> tuple[Mapping[str, Any], str]:
    """The front matter of a card, and the text after it; no front matter is an empty mapping.

    Raises FormatError for YAML that cannot be read.
    """
    text = path.read_bytes()[:_LARGEST].decode("utf-8", "replace").lstrip("\ufeff")
    if not text.startswith("---"):
        return {}, text
    head, found, body = text[3:].partition("\n---")
    return (_mapping(path, head), body) if found else ({}, text)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file that holds a mapping; FormatError for anything else."""
    return _mapping(path, path.read_bytes()[:_LARGEST].decode("utf-8", "replace"))


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    try:
        found = yaml.load(text, _Plain)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise FormatError(f"{path}: the YAML cannot be read: {' '.join(problem.split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise FormatError(f"{path}: the YAML holds a {type(found).__name__}; a mapping is wanted")
    return found
