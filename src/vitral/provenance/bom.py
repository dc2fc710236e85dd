"""Bills of materials: which formats there are, and one door to them."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from vitral.errors import SettingsError
from vitral.provenance.bom_cyclonedx import cyclonedx
from vitral.provenance.bom_spdx import spdx
from vitral.provenance.digest import model_files
from vitral.provenance.facts import Facts

__all__ = ["FORMATS", "Format", "bom", "bom_text", "made_at"]

Format = Literal["cyclonedx-1.7", "cyclonedx-1.6", "spdx-3.0.1"]
FORMATS: tuple[str, ...] = get_args(Format)


def bom(facts: Facts, format: str, made: datetime) -> dict[str, Any]:
    """The document for a model as JSON values; `made` is the time that it states."""
    if format not in FORMATS:
        raise SettingsError(f"a bill of materials in {format!r} is not written; allowed: {', '.join(FORMATS)}")
    if format == "spdx-3.0.1":
        return spdx(facts, made)
    return cyclonedx(facts, format.removeprefix("cyclonedx-"), made)


def bom_text(document: dict[str, Any]) -> str:
    """The document's text: the same bytes for the same values."""
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def made_at(path: Path) -> datetime:
    """The time that a document states: SOURCE_DATE_EPOCH if it is set, else when the newest of the files was written.

    So the same files give the same bytes, today and tomorrow.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isascii() or not given.isdigit() or len(given) > 11:
            raise SettingsError(f"SOURCE_DATE_EPOCH is {given!r:.40}; seconds since 1970 are wanted")
        return datetime.fromtimestamp(int(given), UTC)
    newest = max(file.stat().st_mtime for file in model_files(path).values())
    return datetime.fromtimestamp(int(newest), UTC)
