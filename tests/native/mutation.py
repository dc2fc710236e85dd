"""Does anybody notice? One sign of one kernel is flipped, and the tests must turn red.

    python -m tests.native.mutation

A copy of the C++ sources is built in a temporary folder; each mutant is compiled there, for an environment of
its own, and meets the tests of kernels and of the forward pass. Exit code 1 if a mutant survives, or if the
unchanged copy does not pass. About a minute for each mutant.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.native.rebuilt import Copy
from vitral.native import available

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


def main() -> int:
    """Print a line for each mutant; 1 if one survives."""
    mutants = [mutant for mutant in MUTANTS if mutant.isa in available()]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        copy.build()
        for isa in dict.fromkeys(mutant.isa for mutant in mutants):
            if not copy.passes(*TESTS, "-k", isa):
                raise SystemExit(f"the tests of {isa} are red before anything was changed")
        for mutant in mutants:
            file = Path(folder) / "native" / mutant.file
            whole = file.read_text()
            if whole.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.file} has {mutant.old!r} {whole.count(mutant.old)} times; once is wanted")
            file.write_text(whole.replace(mutant.old, mutant.new))
            copy.build()
            survived = copy.passes(*TESTS, "-k", mutant.isa)
            survivors += survived
            print(f"{mutant.isa:10} {mutant.name}: {'SURVIVED' if survived else 'found'}", flush=True)
            file.write_text(whole)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
