from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.parity.families import FAMILIES
from vitral.engine.memory import PAGE_SIZE, available_bytes, peak_bytes, plan_cache
from vitral.errors import HardwareError, SettingsError
from vitral.model.arithmetic import kv_bytes

ROOT = Path(__file__).parent.parent.parent
SPEC = replace(FAMILIES["llama-2"], max_context=100_000)
MUCH = 1 << 40
PROCESS = 150 << 20


def test_without_a_wish_the_context_is_the_models_but_at_most_8192() -> None:
    assert plan_cache(SPEC, 0, "f16", None, MUCH).context_length == 8192
    assert plan_cache(replace(SPEC, max_context=100), 0, "f16", None, MUCH).context_length == 100


def test_without_a_wish_little_memory_gives_a_shorter_context() -> None:
    room = 2 * kv_bytes(SPEC, 1000, "f16")
    plan = plan_cache(SPEC, 0, "f16", None, PROCESS + room)
    assert plan.context_length == 1000 // PAGE_SIZE * PAGE_SIZE
    assert plan.n_pages * PAGE_SIZE >= plan.context_length
    assert plan_cache(SPEC, 0, "f32", None, PROCESS + room).context_length == 500 // PAGE_SIZE * PAGE_SIZE


def test_the_cache_holds_four_contexts_where_memory_allows() -> None:
    assert plan_cache(SPEC, 0, "f16", 100, MUCH).n_pages == 4 * 4
    assert plan_cache(SPEC, 0, "f16", 100, PROCESS + kv_bytes(SPEC, 128, "f16")).n_pages == 4


def test_a_wish_that_memory_cannot_hold_is_an_error_with_the_numbers() -> None:
    with pytest.raises(HardwareError, match=r"weights \(1,257 MB\).*4000 tokens.*smaller context_length"):
        plan_cache(SPEC, 1_000_000_000, "f16", 4000, 10_000_000)


@pytest.mark.parametrize(
    ("kv_type", "context", "says"),
    [
        ("q4_0", None, "allowed: f32, f16, bf16, q8_0"),
        ("f16", 0, "a whole number from 1"),
        ("f16", 1.5, "a whole number from 1"),
        ("f16", 100_001, "made for at most 100000"),
    ],
)
def test_what_cannot_be_is_refused(kv_type: str, context: int | None, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        plan_cache(SPEC, 0, kv_type, context, MUCH)


def test_the_dynamic_scaling_may_go_beyond_the_models_context() -> None:
    spec = FAMILIES["llama-dynamic"]
    assert plan_cache(spec, 0, "f16", 2 * spec.max_context, MUCH).context_length == 2 * spec.max_context


def test_this_machine_has_some_memory() -> None:
    assert available_bytes() > 1 << 20


def test_the_peak_is_this_process_own_and_not_that_of_what_started_it() -> None:
    held = bytearray(500 << 20)
    held[::4096] = b"x" * len(held[::4096])
    program = "from vitral.engine.memory import peak_bytes; print(peak_bytes())"
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": path}).stdout  # fmt: skip
    assert 5 << 20 < int(said) < len(held) < peak_bytes()
