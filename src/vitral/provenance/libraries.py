"""The libraries of the engine as installed here, each with its licence and how that was found.

A package declares its licence by an SPDX expression (PEP 639), by classifiers, or by a field of free text, and brings
licence files. Only the expression is an SPDX id to begin with. A classifier such as "BSD License" names no version, so
it stands as it is; beside it an id is concluded where the package's files hold the text of one licence and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from vitral.provenance.recognise import LARGEST_TEXT, Recognition, recognise
from vitral.provenance.spdx_id import spdx_id
from vitral.provenance.terms import catalogue

__all__ = ["Library", "libraries", "library"]

_ENGINE = ("numpy", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "llguidance")
_CLASSIFIER = "License :: "
_LONGEST_LABEL = 100  # characters; a longer field is the text itself
_WHOLE = 0.85  # of a text's fingerprints: BSD is filled in with names
_NAMES = ("LICENSE", "LICENCE", "COPYING", "UNLICENSE")


@dataclass(frozen=True, slots=True)
class Library:
    """A library as installed here.

    licence: an SPDX expression, and by its basis the package's own word or concluded from a text. label: what a
    classifier or field says that is no expression. texts: SPDX ids of the licences whose texts are in its licence files.
    note: how all this was found.
    """

    name: str
    version: str
    licence: str | None = None
    basis: Literal["declared", "concluded"] = "declared"
    label: str | None = None
    texts: tuple[str, ...] = ()
    note: str = ""


def libraries() -> tuple[Library, ...]:
    """Those of the engine that are installed."""
    found = []
    for name in _ENGINE:
        try:
            found.append(library(metadata.distribution(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def library(package: metadata.Distribution) -> Library:
    """What an installed package says of its licence."""
    about, name = package.metadata, package.metadata["Name"].lower()
    given = about.get_all("License-Expression") or []
    if given:
        return Library(name, package.version, given[0], note="declared as License-Expression")
    classes = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith(_CLASSIFIER)]
    [field, *_] = about.get_all("License") or [""]
    short = field.strip() if "\n" not in field.strip() and len(field) <= _LONGEST_LABEL else ""
    if spdx_id(short):
        return Library(name, package.version, spdx_id(short), note="declared in the field License")
    label = short or ", ".join(classes) or None
    said = f"declared {'in the field License' if short else 'by classifier'}, which names no SPDX id; " if label else ""
    texts = list(_texts(package)) or ([("the field License", field)] if field and not short else [])
    where = ", ".join(place for place, _ in texts)
    seen = [recognise(text) for _, text in texts]
    ids = tuple(dict.fromkeys(catalogue()[id].spdx for one in seen for match in one.matches for id in match.licences))
    if len(ids) == 1 and all(map(_one_licence, seen)):
        score = min(one.matches[0].score for one in seen)
        note = f"{said}concluded from {where}, which holds {score:.0%} of the text of {ids[0]}"
        return Library(name, package.version, ids[0], "concluded", label, ids, note)
    if ids:
        more = "several licences, also of what the package bundles" if len(ids) > 1 else f"{ids[0]}, with further terms"
        said += f"{where} holds {more}: nothing is concluded"
    elif texts:
        said += f"the text in {where} is not known"
    else:
        said += "no licence file is installed with it"
    return Library(name, package.version, None, "declared", label, ids, said)


def _one_licence(found: Recognition) -> bool:
    """Whether a text is one known licence and nothing else that limits anything."""
    return len(found.matches) == 1 and found.matches[0].score >= _WHOLE and not found.added


def _texts(package: metadata.Distribution) -> Iterator[tuple[str, str]]:
    """The licence files that are installed beside the package's metadata, by name."""
    for file in package.files or ():
        folder, *rest = file.parts[:-1] or ("",)
        if not folder.endswith(".dist-info") or rest not in ([], ["licenses"]):
            continue
        if file.name.upper().startswith(_NAMES):
            yield file.name, Path(str(package.locate_file(file))).read_text("utf-8", "replace")[:LARGEST_TEXT]
