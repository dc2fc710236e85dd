"""What every analysis returns: a frozen dataclass that becomes JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

__all__ = ["Finding"]


class Finding:
    """A result; its fields are numbers, texts, arrays, and tuples or mappings of these."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: arrays as nested lists, numbers that are not finite as null."""
        assert is_dataclass(self)
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Finding):
        return value.to_json()
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None  # JSON knows no infinity
    return value
