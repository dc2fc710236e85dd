"""Does this machine give the law's bits? Every kernel of an instruction set against the reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitral.model import law
from vitral.native.kernels import block_sizes, kernels, matmul, pack, quantise_rows, unpack
from vitral.verdict import Verdict

__all__ = ["self_test"]

_ROWS, _TOKENS, _COLUMNS = 20, 3, 512


def self_test(isa: str) -> Verdict:
    """Products of random bytes of every weight type, and the rounding of activations, bit for bit.

    >>> self_test("scalar").passed
    True
    """
    rng = np.random.default_rng(20261124)
    x = rng.standard_normal((_TOKENS, _COLUMNS)).astype(np.float32)
    wrong: list[str] = []
    codes, scales = quantise_rows(x, isa=isa)
    expected = law.quantise_rows(x)
    if codes.tobytes() != expected[0].tobytes() or scales.tobytes() != expected[1].tobytes():
        wrong.append("quantise")
    types = sorted({kernel.type for kernel in kernels() if kernel.isa == isa and kernel.op == "matmul"})
    packed = [name for name in types if not name.endswith(("F16", "F32"))]
    for name in packed:
        weight = pack(name, _random_rows(name, rng))
        if (
            matmul(weight, x[:, : weight.cols], isa=isa).tobytes()
            != law.linear(unpack(weight, isa="scalar"), x[:, : weight.cols]).tobytes()
        ):
            wrong.append(name)
    plain = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    if matmul(pack("F32", plain.view(np.uint8)), x, isa=isa).tobytes() != law.linear(plain, x).tobytes():
        wrong.append("F32")
    if wrong:
        return Verdict(False, (f"wrong bits: {', '.join(wrong)}",))
    return Verdict(True, (f"{len(packed) + 1} weight types equal the reference",))


def _random_rows(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks of a type; a cleared bit in each byte keeps every f16 scale finite."""
    block, n_bytes = block_sizes()[name]
    raw = rng.integers(0, 256, (_ROWS, _COLUMNS // block * n_bytes), dtype=np.uint8)
    return raw & np.uint8(0xFB)
