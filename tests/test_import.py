"""`import vitral` is quick because it does next to nothing."""

from __future__ import annotations

import subprocess
import sys

_HEAVY = ("numpy", "tokenizers", "jinja2", "httpx", "huggingface_hub", "torch", "fastapi", "vitral.native")


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_vitral_brings_nothing_heavy() -> None:
    loaded = _python("import sys, vitral; print(*sys.modules)").split()
    assert not [name for name in _HEAVY if name in loaded]


def test_importing_vitral_takes_under_a_fifth_of_a_second() -> None:
    code = "import time; began = time.process_time(); import vitral; print(time.process_time() - began)"
    assert min(float(_python(code)) for _ in range(3)) < 0.2


def test_the_command_line_loads_no_model_code_for_its_help() -> None:
    loaded = _python("import sys, vitral.cli.main; print(*sys.modules)").split()
    assert not [name for name in _HEAVY if name in loaded]
