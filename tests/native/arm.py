"""The NEON kernels on a machine that is no ARM: the same bits, or the tests turn red.

    python -m tests.native.arm

The extension is compiled by Debian 12's cross compiler for a Python of Debian's arm64 packages, and runs in QEMU's
user mode (`apt-get install g++-aarch64-linux-gnu qemu-user`; the rest is fetched into a temporary folder). It meets
the tests of kernels, of the forward pass and of the engine. A quarter of an hour, so a nightly check and no part of
`make test`; exit code 1 where a bit differs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.native.rebuilt import Copy

TESTS = ("tests/native/test_kernels.py", "tests/parity/test_reference_engine.py", "tests/engine/test_native.py")
SETS = ("scalar", "neon", "i8mm")
RUNS = {"neon": "neon", "i8mm": "i8mm", "scalar": "not neon and not i8mm"}  # the last: and those that take them all
PYTHON = "3.11"  # Debian 12's
PACKAGES = (
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", f"libpython{PYTHON}-dev"),
    *("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
    *("libsqlite3-0", "libuuid1"),
)
WHEELS = ("numpy", "nanobind", "pytest", "pytest-timeout", "rfc8785")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def fetch_debian(folder: Path) -> Path:
    """Unpack arm64 packages; apt-get keeps its lists in `folder`, so that the system stays as it is."""
    root, lists, cache = folder / "root", folder / "lists", folder / "cache"
    for made in (root, lists / "partial", cache / "archives" / "partial"):
        made.mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    apt += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
    _run(*apt, "update", at=folder)
    _run(*apt, "download", *PACKAGES, at=cache)
    for package in cache.glob("*.deb"):
        _run("dpkg", "-x", str(package), str(root), at=folder)
    return root


def fetch_wheels(folder: Path) -> Path:
    """Install what the tests import, in the versions that this environment has."""
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "--python-version", PYTHON]
    pip += ["--implementation", "cp", "--only-binary=:all:", *(f"--platform={name}" for name in PLATFORMS)]
    _run(*pip, *(f"{name}=={version(name)}" for name in WHEELS), at=folder)
    return site


def arm_python(folder: Path, root: Path, site: Path) -> Path:
    """A command that runs Debian's Python in QEMU, with every instruction that QEMU knows."""
    command = folder / "python"
    path = f"{site}:{folder / 'project' / 'src'}"
    qemu = f"qemu-aarch64 -cpu max -L '{root}' '{root}/usr/bin/python{PYTHON}'"
    command.write_text(f"#!/bin/sh\nPYTHONPATH='{path}' PYTHONDONTWRITEBYTECODE=1 exec {qemu} \"$@\"\n")
    command.chmod(0o755)
    return command


def cross_options(root: Path) -> tuple[str, ...]:
    """What cmake needs in order to compile for ARM against that Python."""
    headers = root / "usr" / "include"
    return (
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        *("-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", f"-DCMAKE_CXX_FLAGS=-idirafter {headers}"),
        f"-DPython_INCLUDE_DIR={headers / f'python{PYTHON}'}",
    )


def _run(*command: str, at: Path) -> None:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> int:
    """Build, test, say how it went."""
    missing = [tool for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; apt-get install g++-aarch64-linux-gnu qemu-user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, site = fetch_debian(folder), fetch_wheels(folder)
        copy = Copy(folder / "project", arm_python(folder, root, site), cross_options(root))
        copy.build()
        found = subprocess.run(
            [str(copy.python), "-c", "from vitral.native import available; print(*available())"],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        if found != list(SETS):
            raise SystemExit(f"under emulation there are {', '.join(found)}; {', '.join(SETS)} were expected")
        different = 0
        for isa, which in RUNS.items():
            passed = copy.passes(*TESTS, "-k", which, "--timeout=0")
            different += not passed
            print(f"{isa:8}{'the same bits' if passed else 'DIFFERENT'}", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
