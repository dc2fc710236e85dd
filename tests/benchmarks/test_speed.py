"""The harness: turns alternate, ratios are of neighbours, a peer that fails is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import models, record, sides, speed
from benchmarks.sides import Failed, LlamaCpp, Worker
from vitral.formats.checkpoint import open_checkpoint
from vitral.model.spec import MoeSpec


class Scripted:
    """A side whose rates are known; notes who ran when."""

    def __init__(self, name: str, rates: list[float], log: list[str]) -> None:
        self.name, self.rates, self.log = name, rates, log
        self.about: dict[str, Any] = {"token_bytes": 1 << 20}

    def run(self, what: str, **how: int) -> float:
        self.log.append(self.name)
        if not self.rates:
            raise Failed("no more")
        return self.rates.pop(0)


class Two:
    def __init__(self, **sides: Any) -> None:
        self.sides = sides

    def side(self, name: str) -> Any:
        return self.sides[name]


def test_ours_and_theirs_take_turns_and_neighbours_are_compared() -> None:
    log: list[str] = []
    engines = Two(ours=Scripted("ours", [1.0, 10.0, 20.0, 30.0], log), them=Scripted("them", [5.0, 5.0, 30.0], log))
    row = speed.Measure("any", "decode", {"answer": 4}, {"them": 2.5}, share=1e9)
    found = speed.measured(row, engines, 3, 1)  # type: ignore[arg-type]
    assert log == ["ours", *["ours", "them"] * 3]
    assert found["tokens_per_s"] == {"ours": 20.0, "them": 5.0}
    assert found["ratio"] == {"them": 2.0}
    assert [line.split(":")[0] for line in found["missed"]] == ["2.5 x them", "100000000000% of the streaming read"]


def test_a_peer_that_fails_is_named_and_asked_no_more() -> None:
    log: list[str] = []
    engines = Two(ours=Scripted("ours", [1.0] * 4, log), them=Scripted("them", [], log))
    row = speed.Measure("any", "prefill", {"prompt": 4}, {"them": 1.0})
    found = speed.measured(row, engines, 3, 1)  # type: ignore[arg-type]
    assert log.count("them") == 1
    assert found["failed"] == {"them": "no more"}
    assert found["missed"] == [] and found["ratio"] == {}


def test_a_worker_answers_and_says_why_it_cannot(data_dir: Path) -> None:
    worker = sides.ours(str(data_dir / "model-stories260k" / "stories260K.bin"), 1, 64)
    try:
        assert worker.about["token_bytes"] > 1_000_000
        assert worker.run("prefill", prompt=32) > 0
        assert worker.run("together", answer=4, sequences=3) > 0
        with pytest.raises(Failed, match="ContextOverflow"):
            worker.run("decode", answer=4000)
        assert worker.run("decode", answer=4) > 0
    finally:
        worker.close()
    with pytest.raises(Failed, match=r"code 3, saying: no such thing"):
        Worker(sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)")


def test_llama_cpps_tools_are_called_and_read(tmp_path: Path) -> None:
    for tool, answer in (("llama-bench", '{"avg_ts": 12.5}'), ("llama-batched-bench", '{"speed_tg": 80.0}')):
        script = tmp_path / tool
        script.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/{tool}.args\necho loading\necho '{answer}'\n")
        script.chmod(0o755)
    side = LlamaCpp(tmp_path, Path("some.gguf"), 2)
    assert side.run("prefill", prompt=512) == side.run("decode", answer=64) == 12.5
    assert side.run("together", answer=64, sequences=16) == 80.0
    assert "-npl 16" in (tmp_path / "llama-batched-bench.args").read_text()
    (tmp_path / "llama-bench").write_text("#!/bin/sh\necho out of luck >&2\nexit 4\n")
    with pytest.raises(Failed, match="code 4, saying: out of luck"):
        side.run("decode", answer=4)


def test_a_random_model_is_one_that_we_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    tiny = replace(
        models.MIXTRAL, dim=256, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, vocab_size=400, moe=MoeSpec(4, 2)
    )
    monkeypatch.setitem(models.SHAPES, "tiny", tiny)
    for type_ in ("Q4_0", "Q4_K_M"):
        checkpoint = open_checkpoint(models.make(tmp_path, "tiny", type_))
        assert checkpoint.spec == tiny
        for tensor in checkpoint.weights.values():
            assert np.isfinite(tensor.dequantize()).all()
        routers = {checkpoint.weights.take(f"blocks.{i}.mlp.router.weight").raw().tobytes() for i in (0, 1)}
        assert len(routers) == 2


def test_a_result_names_machine_and_day(tmp_path: Path) -> None:
    import json

    kept = json.loads(
        record.write("some", {"versions": record.versions("numpy", "nothing-of-this-name")}, tmp_path).read_text()
    )
    assert kept["machine"]["processors"] >= 1 and kept["machine"]["instruction_sets"][0] == "scalar"
    assert kept["versions"]["nothing-of-this-name"] == "not installed"
    assert kept["date"].count("-") == 2
