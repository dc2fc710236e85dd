"""Everything that says under which licence a model stands: read from its files, its name, and the user.

Nothing is judged here, and nothing that a file says is trusted: it is written down, with where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vitral.formats.gguf import read_gguf
from vitral.formats.json_text import parse_object, read_object
from vitral.formats.safetensors import read_notes
from vitral.formats.sniff import kind_of
from vitral.provenance.card import read_card, read_yaml
from vitral.provenance.component import Component, Dossier, Evidence
from vitral.provenance.datasets import data_set, of_data_set
from vitral.provenance.detect import of_text
from vitral.provenance.labels import checkpoint, of_label, of_link, of_name
from vitral.provenance.lineage import KEY, steps_in
from vitral.provenance.use import Role, Use

__all__ = ["gather"]

_LICENCE_FILE = re.compile(r"(un)?(licen[cs]e|copying|use_policy|notice|model_license|gemma_terms)", re.I)
_CODE_FILE = re.compile(r"licen[cs]e[-_.]code", re.I)
_UNSAFE = re.compile(r"abliterat|uncensored|jailbroken", re.I)
_LARGEST = 2 << 20
_LONGEST_LABEL = 300
_MOST_PARTS = 200
_LONGEST_CHAIN = 50
_PARENTS: tuple[Role, ...] = ("base", "adapter", "merged")


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
        """Note a part; what is said of one part twice comes together, however its name is spaced."""
        name = " ".join(name.split())[:200]
        key = (role, _plain(name))
        if not name or _plain(name) == _plain(self.model) or len(self.parts) >= _MOST_PARTS:
            return
        known = checkpoint(name) if role != "dataset" else None
        said = of_data_set(name) if role == "dataset" else of_name(name)
        old = self.parts.get(key) or Component(
            role, name, tuple(said), known.multimodal if known else None, bool(_UNSAFE.search(name))
        )
        self.parts[key] = replace(
            old,
            evidence=tuple(dict.fromkeys((*old.evidence, *evidence))),
            generated_by=generated_by or old.generated_by,
        )


def _plain(name: str) -> str:
    return re.sub(r"[ _]+", "-", name.lower())


def gather(
    path: Path | None,
    model: str,
    use: Use | None = None,
    declared: Mapping[str, str] | None = None,
    find: Callable[[str], Path | None] = lambda name: None,
) -> Dossier:
    """The dossier of a model in a file or folder, or (path None) of a name alone.

    model: what it is called, best as owner/name. declared: labels from elsewhere, by where they stand. find: where the
    files of another model are, by its name; those of its parents are read as well, and of theirs.
    """
    found = _Found(model)
    for where, label in (declared or {}).items():
        found.own += of_label(label, where, model)
    if path is not None:
        _read(Path(path), found)
    if use is not None:
        _stated(found, use)
    _chain(found, find)
    _writers(found)
    parents = any(role in _PARENTS for role, _ in found.parts)
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


def _chain(found: _Found, find: Callable[[str], Path | None]) -> None:
    """What the files of parents say of themselves and of what they are made from, as far as the files are at hand."""
    waiting = [part for part in found.parts.values() if part.role in _PARENTS]
    seen: set[str] = set()
    while waiting and len(seen) < _LONGEST_CHAIN:
        parent = waiting.pop(0)
        path = None if _plain(parent.name) in seen else find(parent.name)
        seen.add(_plain(parent.name))
        if path is None:
            continue
        one = _Found(parent.name)
        _read(path, one)
        found.read += [f"{parent.name}: {name}" for name in one.read]
        found.part(parent.role, parent.name, _elsewhere(one.own, parent.name))
        for part in one.parts.values():
            found.part(part.role, part.name, _elsewhere(part.evidence, parent.name), part.generated_by)
        waiting += [part for part in one.parts.values() if part.role in _PARENTS]


def _elsewhere(evidence: Iterable[Evidence], name: str) -> list[Evidence]:
    """Evidence with the model whose files hold it."""
    by_name = ("name", "catalogue")
    return [item if item.kind in by_name else replace(item, where=f"{name}: {item.where}") for item in evidence]


def _writers(found: _Found) -> None:
    """The models that wrote known data sets, by whose terms whoever asked them was bound."""
    for part in list(found.parts.values()):
        known = data_set(part.name) if part.role == "dataset" else None
        if known is not None and known.writer:
            where = f"what is known of {known.name}: {known.source}, read on {known.read}"
            said = Evidence("catalogue", where, known.writer, (known.written_by,))
            found.part("outputs", f"{known.writer} ({part.name})", [said], part.generated_by or "other")


def _read(path: Path, found: _Found) -> None:
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in [path] if path.is_file() else _models(files):
        kind = kind_of(file)
        if kind == "gguf":
            found.read.append(file.name)
            _gguf(read_gguf(file).metadata, file.name, found)
        elif kind == "safetensors" and (notes := read_notes(file)):
            found.read.append(file.name)
            _notes(notes, file, found)
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
        elif name == "vitral.json":
            found.read.append(file.name)
            _record(read_object(file), file.name, found)
        elif name in ("mergekit_config.yml", "mergekit_config.yaml"):
            found.read.append(file.name)
            for parent in _merged(read_yaml(file)):
                found.part("merged", parent)


def _models(files: Iterable[Path]) -> list[Path]:
    """The first GGUF and the first safetensors file: what a model says of itself stands in each of its parts alike."""
    return [file for suffix in (".gguf", ".safetensors") for file in [f for f in files if f.suffix == suffix][:1]]


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
    for data in _texts(metadata.get("general.datasets")):
        found.part("dataset", data)
    _lineage(metadata.get(KEY), Path(where), found)
    record = _text(metadata.get("vitral.record"))
    if record:
        found.is_adapter = True
        _record(parse_object(record.encode(), f"{where}, vitral.record"), f"{where}, vitral.record", found)


def _notes(notes: Mapping[str, str], file: Path, found: _Found) -> None:
    """What a safetensors header says under `__metadata__`: our keys, ModelSpec's, and the plain ones.

    ModelSpec (Stability-AI/ModelSpec 1.0) allows a name, a link or the whole text under `modelspec.license`.
    """
    for key in ("general.license", "modelspec.license", "license", "licence"):
        said, where = notes.get(key, ""), f"{file.name}, __metadata__ {key}"
        name = notes.get("license_name", "") if key == "license" else ""
        if len(said) > _LONGEST_LABEL:
            found.own += of_text(said, where, is_licence=True)
        elif "://" in said:
            found.own += list(of_link(said, where)) or [_unknown_link(said, where)]
        else:
            found.own += _labelled(said, name, where, found.model)
    for key in ("general.license.link", "license_link"):
        found.own += of_link(notes.get(key, ""), f"{file.name}, __metadata__ {key}")
    for key, role in (("base_model", "base"), ("modelspec.merged_from", "merged"), ("datasets", "dataset")):
        for name in re.split(r"[,;]", notes.get(key, "")):
            found.part(cast(Role, role), name.strip(" []\"'"))
    _lineage(notes.get(KEY), file, found)


def _lineage(text: object, where: Path, found: _Found) -> None:
    """The parents and the data that a model of ours records."""
    for step in steps_in(text, where):
        place = f"{where.name}, {KEY}, {step.operation}"
        role: Role = "merged" if len(step.base) > 1 else "base"
        for base in step.base:
            name = _owner_name(base.get("source", "")) or base.get("name", "")
            found.part(role, name, of_label(base.get("licence", ""), place, name))
        for data in step.data:
            found.part("dataset", data.get("name", ""), of_label(data.get("licence", ""), place))


def _record(record: Mapping[str, Any], where: str, found: _Found) -> None:
    """What a run of `vitral tune` leaves beside its result: base, data, and their licences."""
    base = _short(_text(record.get("base")))
    found.part("base", base, of_label(_text(record.get("base_licence")), f"{where}, base_licence", base))
    licence = _text(record.get("data_licence"))
    data = record.get("data")
    for each in data if isinstance(data, list) else []:
        if isinstance(each, dict):
            said = _text(each.get("licence")) or licence
            found.part(
                "dataset",
                _text(each.get("name")) or _short(_text(each.get("path"))),
                of_label(said, f"{where}, data_licence"),
            )


def _short(name: str) -> str:
    """A name as owner/name, or the last part of a path on somebody's disk."""
    name = name.rstrip("/")
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else name.rsplit("/", 1)[-1]


def _owner_name(source: str) -> str:
    return source.removeprefix("hf:").partition("@")[0].partition(":")[0] if source.startswith("hf:") else ""


def _unknown_link(link: str, where: str) -> Evidence:
    why = ("the address of a licence that is not known: read it", "o endereço de uma licença desconhecida: leia-a")
    return Evidence("linked", where, link[:_LONGEST_LABEL], (), None, *why, doubtful=True)


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
        found.part("base", _short(_text(config.get("base_model_name_or_path"))))
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
