"""The gate before loading: what a scan refuses is not opened, and a signature is verified where one is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

from vitral.errors import SignatureError, UnsafeFile
from vitral.provenance.scan import Scan, scan

__all__ = ["admit"]

_log = logging.getLogger(__name__)


def admit(path: Path, home: Path, verify_key: Path | None = None) -> Scan:
    """The scan of the model at `path`, if it may be opened.

    Raises SignatureError where `verify_key` (a public key, PEM) is given and the signature does not fit, and
    UnsafeFile for what a scan refuses and nobody accepted. What was accepted is logged as a warning.
    """
    if verify_key is not None:
        from vitral.provenance.signature import verify

        verdict = verify(path, verify_key)
        if not verdict:
            raise SignatureError(f"{path} is not what was signed: {'; '.join(verdict.reasons)}")
    done = scan(path)
    found = done.of("refused")
    if not found:
        return done
    from vitral.provenance.accepted import acceptances, waived

    records = acceptances(home)
    for finding in found:
        record = waived(finding, records)
        if record is None:
            raise UnsafeFile(
                f"{path}: {finding.file}: {finding.text} [{finding.rule}]; "
                f"`vitral scan` says more, and --accept REASON records that it may be loaded all the same"
            )
        _log.warning("%s: %s [%s], accepted by %s on %s: %s", path, finding.text, finding.rule, record.who, record.when,
                     record.reason)  # fmt: skip
    return done
