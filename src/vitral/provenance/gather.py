"""Everything that says under which licence a model stands: read from its files, its name, and the user.

Nothing is judged here, and nothing that a file says is trusted: it is written down, with where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vitral.formats.gguf import read_gguf
from vitral.formats.json_text import read_object
from vitral.formats.sniff import kind_of
from vitral.provenance.card import read_card, read_yaml
from vitral.provenance.component import Component, Dossier, Evidence
from vitral.provenance.detect import of_text
from vitral.provenance.labels import checkpoint, of_label, of_link, of_name
from vitral.provenance.use import Role, Use

__all__ = ["gather"]

_LICENCE_FILE = re.compile(r"(un)?(licen[cs]e|copying|use_policy|notice|model_license|gemma_terms)", re.I)
_CODE_FILE = re.compile(r"licen[cs]e[-_.]code", re.I)
_UNSAFE = re.compile(r"abliterat|uncensored|jailbroken", re.I)
_LARGEST = 2 << 20
_MOST_PARTS = 200


@dataclass
class _Found:
    """What was found so far, about the model and about each thing that it is made from."""

    model: str
    own: list[Evidence] = field(default_factory=list)
    parts: dict[tuple[str, str], Component] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    multimodal: bool | None = None
    is_adapter: bool = False

    def part(self, role: Role, name: str, evidence: Iterable[Evidence] = (), generated_by: str = "") -> None:
        """Note a part; what is said of one part twice comes together."""
        name = " ".join(name.split())[:200]
        key = (role, name.lower())
        if not name or name.lower() == self.model.lower() or len(self.parts) >= _MOST_PARTS:
            return
        known = checkpoint(name)
        old = self.parts.get(key) or Component(
            role, name, tuple(of_name(name)), known.multimodal if known else None, bool(_UNSAFE.search(name))
        )
        self.parts[key] = replace(
            old, evidence=old.evidence + tuple(evidence), generated_by=generated_by or old.generated_by
        )


def gather(path: Path | None, model: str, use: Use | None = None, declared: Mapping[str, str] | None = None) -> Dossier:
    """The dossier of a model in a file or folder, or (path None) of a name alone.

    model: what it is called, best as owner/name. declared: labels from elsewhere, by where they stand.
    """
    found = _Found(model)
    for where, label in (declared or {}).items():
        found.own += of_label(label, where, model)
    if path is not None:
        _read(Path(path), found)
    if use is not None:
        _stated(found, use)
    parents = any(role in ("base", "adapter", "merged") for role, _ in found.parts)
    if not parents:
        found.own += of_name(found.model)
    known = checkpoint(found.model)
    own = Component(
        "adapter" if found.is_adapter else "model",
        found.model,
        tuple(dict.fromkeys(found.own)),
        found.multimodal if found.multimodal is not None else (known.multimodal if known else None),
        bool(_UNSAFE.search(found.model)),
    )
    rest = sorted(found.parts.values(), key=lambda part: (part.role, part.name))
    return Dossier(found.model, (own, *rest), tuple(found.read))


def _stated(found: _Found, use: Use) -> None:
    if use.licence:
        found.own += of_label(use.licence, "your statement", found.model, "stated")
    for made in use.made_from:
        said = of_label(made.licence, "your statement", made.name, "stated") if made.licence else ()
        found.part(made.role, made.name or made.licence, said, made.generated_by)


def _read(path: Path, found: _Found) -> None:
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.iterdir() if file.is_file())
    models = [path] if path.is_file() else [file for file in files if file.suffix == ".gguf"][:1]
    for file in models:
        if kind_of(file) == "gguf":
            found.read.append(file.name)
            _gguf(read_gguf(file).metadata, file.name, found)
    beside = " beside the file" if path.is_file() else ""
    for file in files:
        name, where = file.name.lower(), f"{file.name}{beside}"
        if file.stat().st_size > _LARGEST:
            continue
        if name == "readme.md":
            found.read.append(file.name)
            _card(*read_card(file), where, found)
        elif _LICENCE_FILE.match(name) and not _CODE_FILE.match(name):
            found.read.append(file.name)
            found.own += of_text(file.read_text("utf-8", "replace"), where, is_licence=not name.startswith("notice"))
        elif name in ("config.json", "adapter_config.json"):
            found.read.append(file.name)
            _config(read_object(file), found)
        elif name in ("mergekit_config.yml", "mergekit_config.yaml"):
            found.read.append(file.name)
            for parent in _merged(read_yaml(file)):
                found.part("merged", parent)


def _gguf(metadata: Mapping[str, Any], where: str, found: _Found) -> None:
    label, name = _text(metadata.get("general.license")), _text(metadata.get("general.license.name"))
    found.own += _labelled(label, name, f"{where}, general.license", found.model)
    found.own += of_link(_text(metadata.get("general.license.link")), f"{where}, general.license.link")
    for role, key in (("base", "general.base_model"), ("dataset", "general.dataset")):
        count = metadata.get(f"{key}.count", 0)
        for at in range(count if isinstance(count, int) and 0 <= count <= _MOST_PARTS else 0):
            url = _text(metadata.get(f"{key}.{at}.repo_url"))
            owner, title = (_text(metadata.get(f"{key}.{at}.{part}")) for part in ("organization", "name"))
            found.part(cast(Role, role), _repository(url) or "/".join(filter(None, (owner, title))).replace(" ", "-"))


def _card(facts: Mapping[str, Any], body: str, where: str, found: _Found) -> None:
    labels = ", ".join(_texts(facts.get("license")))
    found.own += _labelled(labels, _text(facts.get("license_name")), f"{where}, license", found.model)
    found.own += of_link(_text(facts.get("license_link")), f"{where}, license_link")
    found.own += of_text(f"{body}\n{_text(facts.get('extra_gated_prompt'))}", f"text of {where}", is_licence=False)
    parents = _texts(facts.get("base_model"))
    role: Role = "merged" if _text(facts.get("base_model_relation")) == "merge" or len(parents) > 1 else "base"
    for parent in parents:
        found.part(role, parent)
    for data in _texts(facts.get("datasets")):
        found.part("dataset", data)


def _labelled(label: str, name: str, where: str, model: str) -> Iterator[Evidence]:
    """A label, or, where it is only `other`, the name that stands beside it."""
    if label.lower() == "other" and name:
        yield from of_label(name, f"{where} and license_name", model)
    else:
        yield from of_label(label, where, model)


def _config(config: Mapping[str, Any], found: _Found) -> None:
    if "peft_type" in config:
        found.is_adapter = True
        found.part("base", _text(config.get("base_model_name_or_path")))
    elif "model_type" in config or "architectures" in config:
        found.multimodal = any(key in config for key in ("vision_config", "audio_config", "vision_encoder"))


def _merged(config: object, depth: int = 0) -> Iterator[str]:
    """Every parent that a mergekit configuration names, whatever its weight."""
    if depth > 20:
        return
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("model", "base_model") and isinstance(value, str):
                yield value
            else:
                yield from _merged(value, depth + 1)
    elif isinstance(config, list):
        for value in config:
            yield from _merged(value, depth + 1)


def _repository(url: str) -> str:
    match = re.search(r"huggingface\.co/(?:datasets/)?([\w.-]+/[\w.-]+)", url)
    return match[1] if match else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
