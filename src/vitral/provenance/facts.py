"""What a bill of materials says of a model, gathered from the files: one record that every format is written from.

Nothing is filled in that is not known: absent beats "unknown". Names and licences are what the files declare.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitral.errors import FormatError
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.json_text import read_object
from vitral.formats.safetensors import read_notes
from vitral.model.arithmetic import parameters
from vitral.provenance.card import read_card
from vitral.provenance.compare import tokenizer_in
from vitral.provenance.datasets import data_set
from vitral.provenance.digest import FileDigest, digest_files, model_files
from vitral.provenance.libraries import Library, libraries
from vitral.provenance.lineage import Step, read_lineage
from vitral.provenance.terms import catalogue
from vitral.version import version

__all__ = ["Facts", "Related", "gather"]

_LARGEST_LICENCE_TEXT = 1 << 16


@dataclass(frozen=True, slots=True)
class Related:
    """A model or data set that went into this one; `kind`: base, adapter or dataset.

    `weights` is the digest of a model's weights, `sha256` that of a data set's file.
    """

    kind: str
    name: str
    licence: str | None = None
    weights: str | None = None
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of a model.

    `licences` are SPDX ids, names or tags as declared; `licence_texts` the files LICENSE and the like by name.
    `template` and `vocabulary` are SHA-256 in hexadecimal.
    """

    name: str
    version: str | None
    author: str | None
    layout: str
    files: Mapping[str, FileDigest]
    weights: str
    spec: Mapping[str, Any]
    parameters: int
    licences: tuple[str, ...]
    licence_texts: Mapping[str, str]
    related: tuple[Related, ...]
    languages: tuple[str, ...]
    task: str
    template: str | None
    vocabulary: str | None
    steps: tuple[Step, ...]
    url: str | None
    engine: str
    libraries: tuple[Library, ...] = field(default_factory=tuple)


def gather(path: Path, progress: Callable[[int, int], object] | None = None) -> Facts:
    """Read a model: every byte once for the files' digests, and the tensors once more for the weights'."""
    checkpoint = open_checkpoint(path)
    folder = path if path.is_dir() else path.parent
    card = _card(path)
    tokenizer = tokenizer_in(checkpoint)
    template = tokenizer.chat_template if tokenizer is not None else None
    values = checkpoint.metadata
    return Facts(
        name=str(values.get("general.name") or card.get("model_name") or (path.stem if path.is_file() else path.name)),
        version=_text(values.get("general.version")),
        author=_text(values.get("general.organization") or values.get("general.author")),
        layout=checkpoint.layout,
        files=digest_files(model_files(path), progress=progress),
        weights=checkpoint.weights.digest(),
        spec={"type": "mixture-of-experts" if checkpoint.spec.moe else "dense", **_sizes(checkpoint)},
        parameters=parameters(checkpoint.spec).total,
        licences=_licences(read_notes(path) if checkpoint.layout == "safetensors" else values, card),
        licence_texts=_licence_texts(folder) if path.is_dir() else {},
        related=tuple(_related(checkpoint, card, folder if path.is_dir() else None)),
        languages=_texts(values.get("general.languages") or card.get("language")),
        task="text-generation",
        template=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        vocabulary=None if tokenizer is None else tokenizer.vocabulary_digest,
        steps=read_lineage(checkpoint),
        url=_text(values.get("general.repo_url") or values.get("general.url")),
        engine=version(),
        libraries=libraries(),
    )


def _card(path: Path) -> Mapping[str, Any]:
    """The front matter of the card in a folder; empty without one."""
    card = path / "README.md"
    return read_card(card)[0] if path.is_dir() and card.is_file() else {}


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    spec = checkpoint.spec
    sizes = {
        name: getattr(spec, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_context")
    }
    return sizes | ({"n_experts": spec.moe.n_experts} if spec.moe else {})


def _licences(values: Mapping[str, Any], card: Mapping[str, Any]) -> tuple[str, ...]:
    """What file and card declare, each once: one that says `other` gives its name."""
    found: list[str] = []
    for given, name in (
        (values.get("general.license"), values.get("general.license.name")),
        (card.get("license"), card.get("license_name")),
    ):
        for one in _texts(given):
            for tag in re.split(r",| AND ", one):
                tag = tag.strip()
                found.append(str(name) if tag.lower() == "other" and name else tag)
    return tuple(dict.fromkeys(tag for tag in found if tag))


def _licence_texts(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.iterdir()):
        named = file.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "USE_POLICY"))
        if named and file.is_file() and file.stat().st_size <= _LARGEST_LICENCE_TEXT:
            found[file.name] = file.read_text("utf-8", "replace")
    return found


def _related(checkpoint: Checkpoint, card: Mapping[str, Any], folder: Path | None) -> list[Related]:
    values = checkpoint.metadata
    found: list[Related] = []
    for kind, prefix in (("base", "general.base_model"), ("dataset", "general.dataset")):
        count = values.get(f"{prefix}.count", 0)
        for i in range(min(count, 100) if isinstance(count, int) else 0):
            name = _text(values.get(f"{prefix}.{i}.name"))
            if name:
                found.append(Related(kind, name, url=_text(values.get(f"{prefix}.{i}.repo_url"))))
    for step in read_lineage(checkpoint):
        for base in step.base:
            found.append(
                Related("base", base.get("name", "?"), base.get("licence"), base.get("weights"), base.get("source"))
            )
        for data in step.data:
            found.append(Related("dataset", data.get("name", "?"), data.get("licence"), sha256=data.get("sha256")))
    found += [Related("base", name) for name in _texts(card.get("base_model"))]
    for name in (*_texts(card.get("datasets")), *_texts(values.get("general.datasets"))):
        found.append(Related("dataset", name, _licence_of_data(name)))
    if folder is not None and (folder / "adapter_config.json").is_file():
        try:
            base_name = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        except FormatError:
            base_name = None
        found.append(Related("adapter", f"{folder.name} adapter"))
        found += [Related("base", str(base_name))] if base_name else []
    best: dict[tuple[str, str], Related] = {}
    for one in found:  # the one that knows most
        known = best.get((one.kind, one.name))
        if known is None or (one.weights and not known.weights):
            best[one.kind, one.name] = one
    return [best[key] for key in sorted(best)]


def _licence_of_data(name: str) -> str | None:
    """What the data set's own card was seen to say, for the maker's own name alone."""
    known = data_set(name)
    if known is None or known.name.lower() != name.lower() or known.sure != "primary":
        return None
    return " AND ".join(catalogue()[id].spdx for id in known.licences) or None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
