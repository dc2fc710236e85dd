"""`vitral serve` with short patience, and a clock that a test may move: HURRIED_CLOCK names a file with seconds to add.

What takes half a minute in the real server takes two seconds here, by the same code.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

from vitral.cli.main import main
from vitral.serve import service

CLOCK = Path(os.environ.get("HURRIED_CLOCK", "/nonexistent"))
REAL = time.time


def shifted() -> float:
    """The time of day, moved by what the file says now."""
    try:
        return REAL() + float(CLOCK.read_text())
    except (OSError, ValueError):
        return REAL()


if __name__ == "__main__":
    time.time = shifted
    service.Limits = functools.partial(service.Limits, stall_s=2.0)  # type: ignore[assignment,misc]
    main()
