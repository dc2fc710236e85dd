"""The files that must travel with a model: licence copies, Notice, attribution, what to display, what to name it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from vitral.errors import LicenceError
from vitral.provenance.judgement import Judgement, in_order
from vitral.provenance.scan_names import stays_inside
from vitral.provenance.terms import catalogue

__all__ = ["notice_files", "write_notices"]

_LICENCE_FILE = re.compile(r"licen[cs]e|copying|use_policy|gemma_terms", re.I)


def notice_files(judgement: Judgement, model: Path | None = None) -> dict[str, bytes]:
    """The files to ship, by name: what each duty asks to travel, word for word where the licence says so.

    model: its file or folder, whose own licence files are copied. A text that may be shipped by anyone
    (Apache-2.0) is added where the model does not bring it; of all others the address is given.
    """
    texts: dict[str, str] = {}
    for name in sorted({duty.file for duty in judgement.of("duty") if duty.say and duty.file}):
        texts[name] = (
            "\n".join(dict.fromkeys(duty.say for duty in judgement.of("duty") if duty.file == name and duty.say)) + "\n"
        )
    texts["THIRD-PARTY-LICENCES.md"] = "\n".join(_licences(judgement)) + "\n"
    texts["DUTIES.md"] = "\n".join(_duties(judgement)) + "\n"
    files = {name: text.encode() for name, text in texts.items()} | _shipped(judgement)
    return files | ({path.name: path.read_bytes() for path in _originals(model)} if model else {})


def write_notices(judgement: Judgement, out: Path, model: Path | None = None) -> tuple[Path, ...]:
    """Write `notice_files` into a folder; returns what was written.

    Raises LicenceError where `out` has a file that says something else.
    """
    files = notice_files(judgement, model)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        there = out / name
        if there.exists() and (not there.is_file() or there.read_bytes() != content):
            raise LicenceError(f"{there} exists and says something else; give an empty folder to --out")
    for name, content in files.items():
        (out / name).write_bytes(content)
    return tuple(sorted(out / name for name in files))


def _shipped(judgement: Judgement) -> dict[str, bytes]:
    """Texts of ours for the copies that are owed and that no file of the model has whole."""
    brought = {
        id
        for part in judgement.dossier.components
        for item in part.evidence
        if item.kind == "detected" and not item.doubtful
        for id in item.licences
    }
    folder = resources.files("vitral.provenance").joinpath("texts")
    texts = {id: folder.joinpath(f"{id}.txt") for id in _owed(judgement) if id not in brought}
    return {f"LICENSE-{id}.txt": text.read_bytes() for id, text in texts.items() if text.is_file()}


def _originals(model: Path) -> Iterator[Path]:
    """The licence files of a model; a link that leads out of its folder is not followed, lest a stranger's file travel."""
    folder = model if model.is_dir() else model.parent
    yield from sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and _LICENCE_FILE.match(path.name)
        and stays_inside(folder, path)
        and path.stat().st_size < 2 << 20
    )


def _owed(judgement: Judgement) -> list[str]:
    """The licences of which a copy must travel."""
    return sorted({duty.licence for duty in judgement.of("duty") if duty.duty == "copy"})


def _licences(judgement: Judgement) -> Iterator[str]:
    yield f"# Licences of {judgement.use.name or judgement.dossier.model}"
    owed = _owed(judgement)
    for part in judgement.dossier.components:
        for id in part.licences:
            entry = catalogue()[id]
            yield f"\n## {part.name}\n"
            yield f"{entry.name} ({entry.spdx}), {entry.licensor}, version of {entry.dated}."
            if id in owed:
                yield f"A copy of this licence must travel with the weights. Its text: <{entry.get}>"
            if entry.policy:
                yield f"It includes the {catalogue()[entry.policy].name}: <{catalogue()[entry.policy].get}>"


def _duties(judgement: Judgement) -> Iterator[str]:
    yield f"# Duties for {judgement.use.name or judgement.dossier.model}\n"
    parts: dict[tuple[str, str, str, str], list[str]] = {}
    for duty in sorted(judgement.of("duty"), key=lambda duty: in_order(duty.licence, duty.ref)):
        parts.setdefault((duty.text, duty.say, duty.licence, duty.ref), []).append(duty.part)
    for (text, say, licence, ref), owing in parts.items():
        yield f"- {text}{f' `{say}`' if say else ''} ({licence} {ref}; {', '.join(dict.fromkeys(owing))})"
