"""Vitral: a glass-box engine and workbench for open-architecture language models.

import vitral

with vitral.load("smollm2:135m") as model:
    print(model.generate("Once upon a time", max_tokens=20).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitral.completion import Completion
    from vitral.errors import VitralError
    from vitral.language_model import LanguageModel
    from vitral.loading import load
    from vitral.model.spec import ModelSpec
    from vitral.verdict import Verdict

__all__ = ["Completion", "LanguageModel", "ModelSpec", "Verdict", "VitralError", "load"]

_HOMES = {
    "Completion": "vitral.completion",
    "LanguageModel": "vitral.language_model",
    "ModelSpec": "vitral.model.spec",
    "Verdict": "vitral.verdict",
    "VitralError": "vitral.errors",
    "load": "vitral.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import vitral` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vitral' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
