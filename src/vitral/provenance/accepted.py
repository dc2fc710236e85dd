"""What somebody accepted in spite of a scan: one digest, one rule, a reason, a name and a date."""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitral.errors import SettingsError
from vitral.provenance.findings import Finding
from vitral.provenance.scan import Scan

__all__ = ["Accepted", "accept", "acceptances", "waived"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One record. It holds for these bytes alone: a file that changes by a bit is refused again."""

    sha256: str
    rule: str
    file: str
    reason: str
    who: str
    when: str


def accept(home: Path, scan: Scan, reason: str) -> list[Accepted]:
    """Record that everything which `scan` refuses may be loaded; appended to `accepted.jsonl` under `home`.

    Raises SettingsError without a reason, or for a finding that has no digest to hold on to.
    """
    if not reason.strip():
        raise SettingsError("a reason is wanted: it is what the next person will read")
    wrong = scan.of("refused")
    nameless = [finding for finding in wrong if finding.sha256 is None]
    if nameless:
        raise SettingsError(f"{nameless[0].file} has no content to accept ({nameless[0].text}); remove it instead")
    now, who = datetime.now(UTC).isoformat(timespec="seconds"), _who()
    records = [Accepted(str(f.sha256), f.rule, f.file, reason.strip(), who, now) for f in wrong]
    home.mkdir(parents=True, exist_ok=True)
    with _file(home).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    return records


def acceptances(home: Path) -> list[Accepted]:
    """Every record, the oldest first."""
    if not _file(home).exists():
        return []
    try:
        return [Accepted(**json.loads(line)) for line in _file(home).read_text("utf-8").splitlines() if line.strip()]
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{_file(home)} cannot be read ({error}); repair or delete it") from None


def waived(finding: Finding, records: list[Accepted]) -> Accepted | None:
    """The record that covers a finding."""
    return next((r for r in records if r.sha256 == finding.sha256 and r.rule == finding.rule), None)


def _file(home: Path) -> Path:
    return home / "accepted.jsonl"


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return f"uid {os.getuid()}"
