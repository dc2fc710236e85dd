"""Files with structure: read by the bounded readers of `formats`, and what they hand to other checks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitral.formats.gguf import GgufFile, read_gguf
from vitral.formats.json_text import read_object
from vitral.native import Texts
from vitral.provenance.findings import Finding, note, refused
from vitral.provenance.scan_config import scan_config
from vitral.provenance.scan_tokenizer import scan_added_tokens, scan_rules

__all__ = ["READ_BY_US", "Content", "read_gguf_content", "read_json_content", "read_safetensors_content"]

READ_BY_US = frozenset(
    [
        "config.json",
        "params.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.json",
        "adapter_config.json",
        "tekken.json",
    ]
)
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF


@dataclass(slots=True)
class Content:
    """Templates by name, added tokens as (id, text, special), and the file where it was read as GGUF."""

    templates: dict[str, str] = field(default_factory=dict)
    added_tokens: list[tuple[int | None, str, bool]] = field(default_factory=list)
    gguf: GgufFile | None = None


def read_gguf_content(path: Path, file: str, content: Content) -> Iterator[Finding]:
    """A GGUF file's structure, template and added tokens."""
    model = content.gguf = read_gguf(path)
    for key, value in model.metadata.items():
        if key.startswith("tokenizer.chat_template"):
            if isinstance(value, str):
                content.templates[key.removeprefix("tokenizer.chat_template").lstrip(".") or "default"] = value
            elif key == "tokenizer.chat_template":
                yield refused(
                    file, "template-broken", f"the chat template is a {type(value).__name__}; a text is wanted"
                )
        elif isinstance(value, str) and key.startswith("general.") and "\x1b" in value:
            yield refused(file, "name-misleads", f"{key} holds control characters of a terminal")
    content.added_tokens += _gguf_tokens(model.metadata)
    yield from scan_added_tokens(content.added_tokens, file)


def _gguf_tokens(metadata: Mapping[str, Any]) -> list[tuple[int | None, str, bool]]:
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list | Texts) or types is None or len(types) != len(tokens):
        return []
    kinds = np.asarray(types)
    found = np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED)).tolist()
    return [(id, tokens[id], bool(kinds[id] == _CONTROL)) for id in found]


def read_safetensors_content(path: Path, file: str) -> Iterator[Finding]:
    """A safetensors file's structure."""
    from vitral.formats.safetensors import read_safetensors

    yield from ()
    if not read_safetensors(path):
        yield note(file, "no-tensors", "a safetensors file without tensors")


def read_json_content(path: Path, file: str, content: Content) -> Iterator[Finding]:
    """A JSON file: what asks for code, templates, added tokens, rules that rewrite."""
    from vitral.formats.safetensors import shard_names
    from vitral.tokenizer.load import read_definition

    known = path.name in READ_BY_US
    if path.name in ("tokenizer.json", "tekken.json", "added_tokens.json", "tokenizer_config.json"):
        found: Any = read_definition(path)
    elif known or path.name.endswith(".index.json"):
        found = read_object(path)
    else:
        found = _loosely(path)
        if found is None:
            yield note(file, "json", "JSON that is not read here")
            return
    if isinstance(found.get("weight_map"), dict):
        shard_names(path)  # refuses names that lead out of the folder
    yield from scan_config(found, file)
    content.templates.update(_templates(found))
    content.added_tokens += _added(found)
    yield from scan_added_tokens(content.added_tokens, file)
    if path.name == "tokenizer.json":
        yield from scan_rules(found, file)


def _loosely(path: Path) -> dict[str, Any] | None:
    """A JSON file that nothing here depends on; None if it is none of moderate size, or no object."""
    if path.stat().st_size > 4 << 20:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _templates(found: Mapping[str, Any]) -> dict[str, str]:
    given = found.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        return {
            str(one.get("name")): one["template"]
            for one in given
            if isinstance(one, dict) and isinstance(one.get("template"), str)
        }
    return {}


def _added(found: Mapping[str, Any]) -> list[tuple[int | None, str, bool]]:
    """The added tokens of a tokenizer.json or tokenizer_config.json."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(found.get("added_tokens"), list):
        entries += [(e.get("id"), e) for e in found["added_tokens"] if isinstance(e, dict)]
    if isinstance(found.get("added_tokens_decoder"), dict):
        entries += [(id, e) for id, e in found["added_tokens_decoder"].items() if isinstance(e, dict)]
    tokens = []
    for id, entry in entries:
        text = entry.get("content")
        number = int(id) if isinstance(id, int) or (isinstance(id, str) and id.isdigit() and len(id) < 12) else None
        if isinstance(text, str):
            tokens.append((number, text, bool(entry.get("special"))))
    return tokens
