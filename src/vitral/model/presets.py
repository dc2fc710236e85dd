"""The published sizes of each family: `presets.toml` as ModelSpecs."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from vitral.errors import SpecError
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

__all__ = ["preset", "preset_names", "preset_source"]


def preset(name: str) -> ModelSpec:
    """The architecture of a published model by its short name; SpecError for an unknown one.

    >>> preset("llama-3.1-8b").n_kv_heads
    8
    """
    fields = dict(_find(name))
    fields.pop("source")
    rope, moe = dict(fields.pop("rope")), fields.pop("moe", None)
    if "factors" in rope:
        rope["factors"] = tuple(rope["factors"])
    return ModelSpec(
        **{"sliding_window": None, **fields},
        rope=RopeSpec(**{"scaling": "none", **rope}),
        moe=MoeSpec(**moe) if moe else None,
    )


def preset_names() -> tuple[str, ...]:
    """Every short name."""
    return tuple(_table())


def preset_source(name: str) -> str:
    """Where the numbers come from."""
    return str(_find(name)["source"])


def _find(name: str) -> dict[str, Any]:
    table = _table()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3) or list(table)
        raise SpecError(f"no preset is called {name!r}; the nearest: {', '.join(near)}")
    return table[name]


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = resources.files("vitral.model").joinpath("presets.toml").read_text("utf-8")
    return tomllib.loads(text)
