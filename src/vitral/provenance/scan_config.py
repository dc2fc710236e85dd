"""Configurations that ask for code: `auto_map`, kernels of the Hub, classes by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vitral.provenance.findings import Finding, refused, shown

__all__ = ["YAML", "scan_config", "scan_yaml"]

_CODE = {
    "auto_map": "names classes in Python files of the repository, which trust_remote_code would run",
    "custom_pipelines": "names pipelines in Python files of the repository, which trust_remote_code would run",
    "_target_": "names a Python object that Hydra would call",
    "__reduce__": "describes a call that jsonpickle would make",
    "py/reduce": "describes a call that jsonpickle would make",
    "py/object": "names a class that jsonpickle would make",
}
YAML = (".yaml", ".yml")
_ADAPTED = ("transformers", "torch", "peft")  # whose classes adapters are for; `transformers_modules` is remote code
_MOST_DEPTH = 40
_YAML_CODE = re.compile(
    rb"!!?python/[\w/:.]*|tag:yaml\.org,2002:python/[\w/:.]*|^[ \t-]*[\"']?_target_[\"']?\s*:", re.M
)


def scan_config(content: Any, file: str) -> Iterator[Finding]:
    """Findings of one parsed JSON file."""
    for path, key, value in _entries(content, "", 0):
        where = f"{path}{key}"
        if key in _CODE and value:
            yield refused(file, "remote-code", f"{shown(where)}: {shown(value)} {_CODE[key]}")
        elif key == "trust_remote_code" and value is True:
            yield refused(file, "remote-code", f"{shown(where)} asks to run code of the repository")
        elif "attn_implementation" in key and isinstance(value, str) and "/" in value:
            yield refused(file, "remote-code", f"{shown(where)}: {shown(value)} fetches compiled code from the Hub")
        elif key == "parent_library" and isinstance(value, str) and value.partition(".")[0] not in _ADAPTED:
            yield refused(file, "remote-code", f"{shown(where)}: {shown(value)} is a module that PEFT would import")
        elif key == "class_name" and value == "Lambda":
            yield refused(file, "keras-lambda", f"{shown(where)} is a Keras layer that carries code")


def scan_yaml(text: bytes, file: str, where: str = "") -> Iterator[Finding]:
    """Findings of a YAML file: tags by which PyYAML's unsafe loader calls Python, and Hydra's targets."""
    found = _YAML_CODE.search(text)
    if found is not None:
        said = shown(found[0].decode("utf-8", "replace").strip())
        yield refused(file, "remote-code", f"{where}{said} names a Python object that a reader of YAML would call")


def _entries(value: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    if depth > _MOST_DEPTH:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, str(key), item
            yield from _entries(item, f"{path}{key}.", depth + 1)
    elif isinstance(value, list):
        for item in value[:1000]:
            yield from _entries(item, f"{path}[].", depth + 1)
