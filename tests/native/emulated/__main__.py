"""The AVX-512 and AMX kernels on a CPU that has neither: the same bits, or the tests turn red.

    python -m tests.native.emulated [--simde FOLDER]

The kernels are compiled against an emulation of their intrinsics (SIMDe, Debian's libsimde-dev, and immintrin.h
beside this file) and meet the tests of kernels, of the forward pass and of the engine. FOLDER holds simde/x86/;
without it the package is fetched by apt-get. Some ten minutes; exit code 1 where a bit differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.native.rebuilt import Copy

HERE = Path(__file__).parent
TESTS = ("tests/native/test_kernels.py", "tests/parity/test_reference_engine.py", "tests/engine/test_native.py")
WIDE = ("avx512vnni", "amx")


def fetched(folder: Path) -> Path:
    """SIMDe's headers from Debian's package."""
    subprocess.run(["apt-get", "download", "-q", "libsimde-dev"], cwd=folder, check=True)
    [package] = folder.glob("libsimde-dev*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder / "simde")], check=True)
    return folder / "simde" / "usr" / "include"


def emulate(copy: Copy, simde: Path) -> None:
    """Let the wide kernels be compiled without their instructions, and be chosen on this CPU."""
    cmake = copy.folder / "native" / "CMakeLists.txt"
    lines = cmake.read_text().splitlines()
    kept = [line for line in lines if "-mprefer-vector-width" not in line]
    for i, line in enumerate(kept):
        for isa in WIDE:
            if line.strip().startswith(f"vitral_isa({isa} "):
                indent = line[: len(line) - len(line.lstrip())]
                kept[i] = f'{indent}vitral_isa({isa} -mavx2 -mfma -mf16c -O1 -w "-I{HERE}" "-I{simde}")'
    cmake.write_text("\n".join(kept) + "\n")
    dispatch = copy.folder / "native" / "dispatch.cpp"
    text = dispatch.read_text()
    for old, new in (
        ('found.push_back({"avx512vnni", lack.empty(),', 'found.push_back({"avx512vnni", true,'),
        ("found.push_back(detect_amx(lack.empty()));", 'found.push_back({"amx", true, "emulated"});'),
    ):
        if text.count(old) != 1:
            raise SystemExit(f"dispatch.cpp has {old!r} {text.count(old)} times; once is wanted")
        text = text.replace(old, new)
    dispatch.write_text(text.replace("IsaState detect_amx", "[[maybe_unused]] IsaState detect_amx"))


def main() -> int:
    """Build, test, say how it went."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--simde", type=Path, help="the folder that holds simde/x86/")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        emulate(copy, given.simde or fetched(Path(folder)))
        copy.build()
        passed = {isa: copy.passes(*TESTS, "-k", isa) for isa in WIDE}
    for isa, well in passed.items():
        print(f"{isa:12}{'the same bits' if well else 'DIFFERENT'}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
