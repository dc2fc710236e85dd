"""The door to C++: instruction sets, kernels, the model that the engine runs, and the strings of vocabularies.

The kernels give the bits of `vitral.model.law`, whichever instruction set computes them.
"""

from __future__ import annotations

from vitral.native.features import InstructionSet, available, choose, instruction_sets
from vitral.native.kernels import Packed, matmul, pack, quantise_rows, rows_of, unpack
from vitral.native.model import Cache, ExpertCounts, NativeModel, argmax, top_n, top_rows
from vitral.native.selftest import self_test
from vitral.native.texts import Merges, Texts, read_texts, texts_of

__all__ = [
    "Cache",
    "ExpertCounts",
    "InstructionSet",
    "Merges",
    "NativeModel",
    "Packed",
    "Texts",
    "argmax",
    "available",
    "choose",
    "instruction_sets",
    "matmul",
    "pack",
    "quantise_rows",
    "read_texts",
    "rows_of",
    "self_test",
    "texts_of",
    "top_n",
    "top_rows",
    "unpack",
]
