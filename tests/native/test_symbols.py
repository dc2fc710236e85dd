"""Code of one instruction set must not leak into functions that another machine runs."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"


def compiler(flags: list[str]) -> str | None:
    """This machine's, or for ARM on another machine Debian's cross compiler, if it is there."""
    abroad = any(flag.startswith("-march=armv8") for flag in flags) and platform.machine() not in ("aarch64", "arm64")
    return shutil.which("aarch64-linux-gnu-g++" if abroad else "c++")


def instruction_sets() -> list[tuple[str, list[str]]]:
    """Names and compiler flags, as native/CMakeLists.txt has them, of what can be compiled here."""
    calls = re.findall(r"^ *vitral_isa\((\w+)([^)]*)\)", (NATIVE / "CMakeLists.txt").read_text(), re.MULTILINE)
    return [(name, flags.split()) for name, flags in calls if compiler(flags.split())]


@pytest.mark.parametrize("source", ["kernels.cpp", "back_kernels.cpp"])
@pytest.mark.parametrize(("isa", "flags"), instruction_sets(), ids=[name for name, _ in instruction_sets()])
def test_no_weak_symbol_outside_the_namespace_of_the_instruction_set(
    isa: str, flags: list[str], source: str, tmp_path: Path
) -> None:
    """A weak function (an inline one, a template of std::) is kept once for the whole module: the
    copy with AVX-512 in it could be the one that a machine without it runs. Without optimisation
    the compiler leaves every such function visible."""
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    out = tmp_path / "kernels.o"
    options = ["-std=gnu++17", "-O0", "-fno-exceptions", *flags]
    names = [f"-DVITRAL_ISA_{isa.upper()}", f'-DVITRAL_NAME="{isa}"']
    command = [compiler(flags) or "", *options, *names, "-c", "-o", str(out), str(NATIVE / source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "unrecognized" in built.stderr:
        pytest.skip(f"this compiler does not know {flags}")
    assert built.returncode == 0, built.stderr
    symbols = subprocess.run(["nm", "-C", out], capture_output=True, text=True, check=True).stdout
    shared = [line for line in symbols.splitlines() if re.match(r"[0-9a-f]+ [WwVvuC] ", line)]
    assert [line for line in shared if f"vitral::{isa}::" not in line] == []
