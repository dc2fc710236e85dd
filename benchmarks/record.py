"""What stands beside every figure: the machine, the versions, the day; and where the figures are kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU, instruction sets, processors of this process, memory, load and system, as plain data."""
    from vitral.native import available

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": facts.get("model name", platform.processor()),
        "vendor": facts.get("vendor_id", "unknown"),
        "l3": _cache_size(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": list(available()),
        "load_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages; a package that is missing says so."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep figures as `<name>.json`, with the day on top; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    kept = {"date": datetime.date.today().isoformat(), "machine": machine(), **figures}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def _cache_size() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return path.read_text().strip() if path.exists() else "unknown"
