"""The typed description of the extension module says what the module has."""

from __future__ import annotations

import ast
from pathlib import Path

import vitral.native
from vitral.native import _core


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_stub_names_every_function_and_member() -> None:
    tree = ast.parse((Path(vitral.native.__file__).parent / "_core.pyi").read_text())
    described = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert public(list(described)) == public(list(vars(_core)))
    for name, node in described.items():
        if isinstance(node, ast.ClassDef):
            members = [member.name for member in node.body if isinstance(member, ast.FunctionDef)]
            assert public(members) == public(list(vars(getattr(_core, name)))), name
