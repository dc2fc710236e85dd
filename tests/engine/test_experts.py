"""Mixtures larger than memory: experts stay in their file, and no bit knows of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import vitral
from benchmarks.models import write_model
from tests.parity.families import FAMILIES
from vitral.engine.memory import PAGE_SIZE, plan_cache
from vitral.engine.native import NativeForward, native_model
from vitral.errors import HardwareError
from vitral.formats.bounds import is_mapped, let_go, map_file
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.weights import Weights
from vitral.model.arithmetic import kv_bytes
from vitral.model.law import F32
from vitral.model.spec import MoeSpec
from vitral.native import ExpertCounts, available

SPEC = replace(
    FAMILIES["mixtral"], dim=128, n_layers=3, hidden_dim=256, moe=MoeSpec(8, 2), vocab_size=320, max_context=4096
)
EXPERTS = SPEC.n_layers * 8
PROCESS = 150 << 20


@pytest.fixture(scope="module", params=["Q4_0", "Q4_K_M", "BF16"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(SPEC, dim=256) if request.param == "Q4_K_M" else SPEC
    return write_model(tmp_path_factory.mktemp("mixture") / f"{request.param}.gguf", spec, request.param)


def steps(
    path: Path, kept: int | None, *, threads: int = 2, taps: tuple[str, ...] = ()
) -> tuple[list[F32], ExpertCounts]:
    """Logits of a prompt of 20 tokens and of 12 single ones, with room for `kept` experts."""
    checkpoint = open_checkpoint(path)
    budget = None if kept is None else kept * largest_expert(path)
    model = native_model(
        checkpoint.spec,
        checkpoint.weights,
        threads=threads,
        isa=available()[-1],
        context_length=64,
        expert_bytes=budget,
    )
    assert kept is not None or model.expert_counts.budget_bytes == 0
    cache_ = model.new_cache(2, 32, "bf16")
    pages = np.arange(2, dtype=np.int32)[None]
    ids = np.random.default_rng(1).integers(0, SPEC.vocab_size, 32).astype(np.int32)
    found, seen = [], list[str]()
    for begin, end in [(0, 20), *((i, i + 1) for i in range(20, 32))]:
        n = end - begin
        positions, wanted = np.arange(begin, end, dtype=np.int32), np.arange(n, dtype=np.int32)
        seen.clear()
        logits = model.forward(
            cache_,
            ids[begin:end],
            positions,
            np.zeros(n, np.int32),
            pages,
            wanted,
            taps,
            lambda name, *_: seen.append(name),
        )
        assert seen == sorted(seen)
        found.append(logits)
    return found, model.expert_counts


@cache
def largest_expert(path: Path) -> int:
    """Bytes: the packed form takes what the file takes, rounded up."""
    weights = open_checkpoint(path).weights
    sizes = [Weights.n_bytes(weights, f"blocks.{i}.mlp.experts.0.") for i in range(SPEC.n_layers)]
    return int(max(sizes) * 1.1) + 256


@pytest.mark.parametrize("kept", [1, 2, 5, 12])
def test_the_budget_changes_no_bit(path: Path, kept: int) -> None:
    expected, _ = steps(path, None)
    found, counts = steps(path, kept)
    assert [row.tobytes() for row in found] == [row.tobytes() for row in expected]
    assert counts.held_bytes <= counts.budget_bytes
    assert counts.misses > EXPERTS - kept  # some came back after they had left
    assert counts.hits > 0 or kept == 1


def test_with_room_for_all_each_expert_is_read_once(path: Path) -> None:
    found, counts = steps(path, EXPERTS)
    assert counts.misses <= EXPERTS < counts.hits
    assert counts.bytes_read <= open_checkpoint(path).weights.n_bytes(".experts.")
    assert len(found) == 13


def test_only_chosen_experts_are_read(path: Path) -> None:
    """Of 3 layers the first token chooses 6 experts; the others are not touched."""
    checkpoint = open_checkpoint(path)
    model = native_model(
        checkpoint.spec, checkpoint.weights, threads=1, isa=available()[-1], context_length=64,
        expert_bytes=EXPERTS * largest_expert(path),
    )  # fmt: skip
    one = np.zeros(1, np.int32)
    model.forward(model.new_cache(1, 32, "bf16"), one + 7, one, one, one[None], one)
    of_all = checkpoint.weights.n_bytes(".experts.") / EXPERTS
    assert model.expert_counts.misses == 2 * SPEC.n_layers
    assert model.expert_counts.bytes_read == pytest.approx(
        6 * of_all, rel=0.35
    )  # layers of a mix differ in their types


def test_who_watches_sees_experts_in_order_and_the_same_bits(path: Path) -> None:
    taps = tuple(f"blocks.1.mlp.experts.{e}.hook_out" for e in range(8))
    expected, _ = steps(path, None)
    found, _ = steps(path, 2, threads=1, taps=taps)
    assert [row.tobytes() for row in found] == [row.tobytes() for row in expected]


def test_a_matrix_of_an_expert_is_read_backwards_from_its_file(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    x = np.random.default_rng(2).standard_normal((3, checkpoint.spec.dim)).astype(np.float32)
    found = []
    for budget in (None, 2 * largest_expert(path)):
        model = native_model(
            checkpoint.spec, open_checkpoint(path).weights, threads=2, isa=available()[-1], context_length=8, expert_bytes=budget
        )  # fmt: skip
        found += [model.project_back(f"blocks.1.mlp.experts.{e}.down.weight", x).tobytes() for e in (0, 5, 7, 0)]
    assert found[:4] == found[4:]


def test_a_mixture_that_does_not_fit_is_opened_with_its_experts_in_the_file(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(path)
    expert_bytes = checkpoint.weights.n_bytes(".experts.")
    rest = int((checkpoint.weights.n_bytes() - expert_bytes) * 1.1) + PROCESS
    with vitral.load(path, threads=1, context_length=64) as model:
        ids = model.generate("abc", max_tokens=8).token_ids
    assert not caplog.records
    budget = rest + kv_bytes(checkpoint.spec, 64) + expert_bytes // 3
    with vitral.load(path, threads=1, context_length=64, memory_bytes=budget) as model:
        assert model.generate("abc", max_tokens=8).token_ids == ids
        forward = model.engine.forward
        assert isinstance(forward, NativeForward)
        assert forward.model.expert_counts.misses > 0
    assert "larger than memory: experts stay in the file" in caplog.text
    monkeypatch.setenv("VITRAL_MEMORY_BUDGET", str(PROCESS))
    with pytest.raises(HardwareError, match=r"even with its experts left in the file.*2 experts that a token uses"):
        vitral.load(path, threads=1, context_length=64)


def test_experts_that_are_not_in_place_are_refused(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    name = "blocks.0.mlp.experts.3.up.weight"
    copied = {**checkpoint.weights.tensors}
    raw = copied[name].raw().copy()
    copied[name] = replace(copied[name], read=lambda: raw)
    with pytest.raises(HardwareError, match=rf"{name} is stored there in another order; `vitral convert`"):
        native_model(
            checkpoint.spec, Weights(checkpoint.spec, copied), threads=1, isa="scalar", context_length=8, expert_bytes=1 << 30
        )  # fmt: skip


def test_a_budget_below_one_expert_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="an expert of layer 0 takes"):
        steps(path, 0)


def test_the_plan_shares_memory_between_cache_and_experts() -> None:
    """Weights of 26 GB, 25 of them experts, on 20 GB: a context of a tenth of what is left, experts the rest."""
    spec = replace(SPEC, n_layers=32, n_kv_heads=8, head_dim=128, n_heads=8, max_context=32768)
    plan = plan_cache(spec, 26 * 10**9, "bf16", None, 20 * 10**9, expert_bytes=25 * 10**9)
    assert plan.expert_bytes is not None
    cache_bytes = plan.n_pages * PAGE_SIZE * kv_bytes(spec, 1)
    assert plan.context_length == 8192 == plan.n_pages * PAGE_SIZE
    assert plan.expert_bytes + cache_bytes + int(1.1e9) + PROCESS == pytest.approx(20 * 10**9, abs=10)
    assert plan_cache(spec, 26 * 10**9, "bf16", None, 40 * 10**9, expert_bytes=25 * 10**9).expert_bytes is None
    with pytest.raises(HardwareError, match="need more than"):  # a dense model of the size
        plan_cache(replace(spec, moe=None), 26 * 10**9, "bf16", None, 20 * 10**9)


def test_loading_lets_go_of_the_file(tmp_path: Path) -> None:
    """Mapped pages that were packed leave the process; an array of its own keeps its bytes."""
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * (1 << 16))  # 16 MiB
    mapped = map_file(path)
    part = mapped[5000:-3000]
    assert is_mapped(part)
    before, total = _mapped_kib(path), int(part.sum())
    assert _mapped_kib(path) - before > 16_000
    let_go(part)
    assert _mapped_kib(path) < 100
    assert int(part.sum()) == total
    own = part.copy()
    let_go(own)
    assert not is_mapped(own)
    assert (own == part).all()


def _mapped_kib(path: Path) -> int:
    """Of a mapped file, how much this process has in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        next(int(after.split()[1]) for after in lines if after.startswith("Rss:"))
        for line in lines
        if line.endswith(str(path))
    )
