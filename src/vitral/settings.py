"""The only reader of Vitral's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitral.errors import SettingsError

__all__ = ["ISAS", "Settings", "read_settings"]

ISAS = ("scalar", "avx2", "avx512vnni", "amx", "neon", "i8mm")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for; None means that Vitral chooses.

    `home` holds the model store, `threads` is how many threads compute (1 to 1024),
    `isa` forces an instruction set (one of ISAS). With `verify_key`, a public key, no model is loaded whose
    signature does not fit.
    """

    home: Path
    threads: int | None
    isa: str | None
    verify_key: Path | None = None


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read VITRAL_HOME, VITRAL_THREADS, VITRAL_ISA and VITRAL_VERIFY_KEY.

    Raises SettingsError for a value that cannot be used.

    >>> read_settings({"VITRAL_THREADS": "2"}).threads
    2
    """
    env = os.environ if environ is None else environ
    home = env.get("VITRAL_HOME") or str(Path.home() / ".cache" / "vitral")
    isa = env.get("VITRAL_ISA") or None
    if isa is not None and isa not in ISAS:
        raise SettingsError(f"VITRAL_ISA is {isa!r}; allowed: {', '.join(ISAS)}, or unset it")
    key = env.get("VITRAL_VERIFY_KEY")
    verify_key = Path(key).expanduser() if key else None
    return Settings(Path(home).expanduser(), _threads(env.get("VITRAL_THREADS")), isa, verify_key)


def _threads(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise SettingsError(f"VITRAL_THREADS is {text!r}; allowed: a whole number from 1 to 1024, or unset it")
    return int(text)
