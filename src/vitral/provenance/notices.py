"""The files that must travel with a model: licence copies, Notice, attribution, what to display, what to name it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitral.errors import LicenceError
from vitral.provenance.judgement import Finding, Judgement
from vitral.provenance.terms import catalogue

__all__ = ["notice_files", "write_notices"]

_LICENCE_FILE = re.compile(r"licen[cs]e|copying|use_policy|gemma_terms", re.I)


def notice_files(judgement: Judgement) -> dict[str, str]:
    """The files to write, by name: what each duty asks to travel, word for word where the licence says so."""
    files: dict[str, str] = {}
    for name in sorted({duty.file for duty in judgement.of("duty") if duty.say and duty.file}):
        files[name] = (
            "\n".join(dict.fromkeys(duty.say for duty in judgement.of("duty") if duty.file == name and duty.say)) + "\n"
        )
    files["THIRD-PARTY-LICENCES.md"] = "\n".join(_licences(judgement)) + "\n"
    files["DUTIES.md"] = "\n".join(_duties(judgement)) + "\n"
    return files


def write_notices(
    judgement: Judgement, out: Path, model: Path | None = None, ours: Mapping[str, str] | None = None
) -> tuple[Path, ...]:
    """Write the bundle into a folder; returns what was written.

    model: its file or folder, whose own licence files are copied. ours: texts of licences that we may ship, by id.
    Raises LicenceError where `out` has files that would be overwritten with something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = notice_files(judgement)
    for id in _owed(judgement):
        if ours and id in ours:
            files[f"LICENSE-{id}.txt"] = ours[id]
    copies = list(_originals(model)) if model else []
    for name in (*files, *(path.name for path in copies)):
        there = out / name
        if (
            there.exists()
            and (name not in files or there.read_text("utf-8", "replace") != files[name])
            and not _same(there, copies)
        ):
            raise LicenceError(f"{there} exists and says something else; give an empty folder to --out")
    for name, text in files.items():
        (out / name).write_text(text, "utf-8")
    for path in copies:
        if (out / path.name).resolve() != path.resolve():
            shutil.copyfile(path, out / path.name)
    return tuple(sorted(out / name for name in {*files, *(path.name for path in copies)}))


def _same(there: Path, copies: list[Path]) -> bool:
    return any(path.name == there.name and path.read_bytes() == there.read_bytes() for path in copies)


def _originals(model: Path) -> Iterator[Path]:
    folder = model if model.is_dir() else model.parent
    yield from sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and _LICENCE_FILE.match(path.name) and path.stat().st_size < 2 << 20
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
    for duty in judgement.of("duty"):
        yield f"- {_line(duty)}"


def _line(duty: Finding) -> str:
    words = f" `{duty.say}`" if duty.say else ""
    return f"{duty.text}{words} ({duty.licence} {duty.ref}; {duty.part})"
