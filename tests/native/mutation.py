"""Does anybody notice? One sign of one kernel is flipped, and the tests must turn red.

    python -m tests.native.mutation

A copy of the C++ sources is built in a temporary folder; each mutant is compiled there, for an environment of
its own, and meets the tests of kernels and of the forward pass. Exit code 1 if a mutant survives, or if the
unchanged copy does not pass. About a minute for each mutant.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

from vitral.native import available

ROOT = Path(__file__).parents[2]
TESTS = ("tests/native/test_kernels.py", "tests/parity/test_reference_engine.py")


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in a file under native/; the tests of `isa` run."""

    name: str
    file: str
    old: str
    new: str
    isa: str


MUTANTS = [
    Mutant("a float product", "isa/scalar.h", "__builtin_fmaf(a.v[i],", "__builtin_fmaf(-a.v[i],", "scalar"),
    Mutant("the rotation of queries and keys", "ops/rows.h", "store_some(x + d, m, sub(", "store_some(x + d, m, add(", "scalar"),
    Mutant("a value mixed by attention", "ops/attention.h", "fma(w, x[v], part[n][v])", "sub(part[n][v], mul(w, x[v]))", "scalar"),
    Mutant("a sum over splits of keys", "ops/attention.h", "sum = sum + part;", "sum = sum - part;", "scalar"),
    Mutant("an integer product of codes above 127", "special/avx2_panels.h", "return _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(codes", "return _mm256_sub_epi32(_mm256_madd_epi16(_mm256_and_si256(codes", "avx2"),
    Mutant("an integer product of small codes", "special/avx2_panels.h", "_mm256_add_epi32(dot[t][g], wide)", "_mm256_sub_epi32(dot[t][g], wide)", "avx2"),
]  # fmt: skip


class Copy:
    """The project in a folder of its own, with a Python that imports nothing of Vitral from elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("native", "src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_core*.so"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        [site] = (folder / "venv" / "lib").glob("python*/site-packages")
        paths = [str(folder / "src"), *dict.fromkeys(p for p in sys.path if p.endswith("site-packages"))]
        (site / "libraries.pth").write_text("\n".join(paths) + "\n")

    def build(self) -> None:
        """Compile what changed and put the extension where it is imported from."""
        build = self.folder / "build"
        if not build.exists():
            python = f"-DPython_EXECUTABLE={self.python}"
            _quietly(
                "cmake", "-S", "native", "-B", "build", "-GNinja", python, "-DCMAKE_BUILD_TYPE=Release", at=self.folder
            )
        _quietly("ninja", "-C", "build", at=self.folder)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        shutil.copy(build / f"_core{suffix}", self.folder / "src" / "vitral" / "native")

    def passes(self, isa: str) -> bool:
        """Whether the tests of an instruction set pass; anything but pass and fail is an error."""
        command = [str(self.python), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS, "-k", isa]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 0


def _quietly(*command: str, at: Path) -> None:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> int:
    """Print a line for each mutant; 1 if one survives."""
    mutants = [mutant for mutant in MUTANTS if mutant.isa in available()]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        copy.build()
        for isa in dict.fromkeys(mutant.isa for mutant in mutants):
            if not copy.passes(isa):
                raise SystemExit(f"the tests of {isa} are red before anything was changed")
        for mutant in mutants:
            file = Path(folder) / "native" / mutant.file
            whole = file.read_text()
            if whole.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.file} has {mutant.old!r} {whole.count(mutant.old)} times; once is wanted")
            file.write_text(whole.replace(mutant.old, mutant.new))
            copy.build()
            survived = copy.passes(mutant.isa)
            survivors += survived
            print(f"{mutant.isa:10} {mutant.name}: {'SURVIVED' if survived else 'found'}", flush=True)
            file.write_text(whole)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
