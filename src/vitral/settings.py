"""The only reader of Vitral's environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitral.errors import SettingsError

__all__ = ["ISAS", "Settings", "read_settings", "size_of"]

ISAS = ("scalar", "avx2", "avx512vnni", "amx", "neon", "i8mm")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for; None means that Vitral chooses.

    `home` holds the model store, `threads` is how many threads compute (1 to 1024),
    `isa` forces an instruction set (one of ISAS). With `verify_key`, a public key, no model is loaded whose
    signature does not fit. `memory_bytes` is the most that weights and cache of a model may take. `engine_key` is sent
    to the servers that `vitral serve --engine` names.
    """

    home: Path
    threads: int | None
    isa: str | None
    verify_key: Path | None = None
    memory_bytes: int | None = None
    engine_key: str | None = None


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read VITRAL_HOME, VITRAL_THREADS, VITRAL_ISA, VITRAL_VERIFY_KEY, VITRAL_MEMORY_BUDGET and VITRAL_ENGINE_KEY.

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
    memory = env.get("VITRAL_MEMORY_BUDGET")
    memory_bytes = size_of("VITRAL_MEMORY_BUDGET", memory) if memory else None
    return Settings(
        Path(home).expanduser(),
        _threads(env.get("VITRAL_THREADS")),
        isa,
        verify_key,
        memory_bytes,
        env.get("VITRAL_ENGINE_KEY") or None,
    )


def size_of(name: str, text: str) -> int:
    """A size in bytes; KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024. SettingsError names what was set.

    >>> size_of("--memory-budget", "1.5GB"), size_of("", "2 GiB"), size_of("", "4096")
    (1500000000, 2147483648, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMG])(i)?B?|B)?", text.strip(), re.IGNORECASE)
    if match is not None:
        number, unit, binary = match.groups()
        power = " KMG".index(unit.upper()) if unit else 0
        if (size := int(float(number) * (1024 if binary else 1000) ** power)) >= 1:
            return size
    raise SettingsError(f"{name} is {text!r}; expected a size such as 6GB, 512MiB or 6000000000")


def _threads(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise SettingsError(f"VITRAL_THREADS is {text!r}; allowed: a whole number from 1 to 1024, or unset it")
    return int(text)
