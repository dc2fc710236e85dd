"""JSON schemas of the real world: those that installed packages ship, by name."""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from functools import cache
from importlib import resources
from typing import Any

import pydantic

__all__ = ["real_schemas"]

MODELS = ("openai.types", "openai.types.chat", "openai.types.responses", "anthropic.types")
FILES = ("cyclonedx", "jsonschema_specifications", "setuptools", "scikit_build_core", "schemathesis", "cmake")


@cache
def real_schemas() -> dict[str, dict[str, Any]]:
    """Requests, responses and tools of two APIs as their packages describe them, and schema files; no two are equal."""
    found: dict[str, dict[str, Any]] = {}
    for package in MODELS:
        module = importlib.import_module(package)
        for name in sorted(dir(module)):
            kind = getattr(module, name)
            if inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[f"{package}.{name}"] = kind.model_json_schema()
    for package in FILES:
        found |= _files(resources.files(package), package)
    distinct = {json.dumps(schema): name for name, schema in reversed(found.items())}
    return {name: found[name] for name in sorted(distinct.values())}


def _files(folder: Any, name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found |= _files(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".json") or ("." not in entry.name and "specifications" in name):
            try:
                data = json.loads(entry.read_text("utf-8"))
            except ValueError:  # a package may ship files that only look like JSON
                continue
            if isinstance(data, dict) and ("$schema" in data or {"type", "properties"} <= data.keys()):
                found[f"{name}/{entry.name}"] = data
    return found
