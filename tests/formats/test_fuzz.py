"""Damaged checkpoints end in a model or in a typed error; and the fuzzer would see it if they did not.

The whole run, 100,000 for each layout: `python -m tests.formats.fuzz`.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path
from random import Random

import pytest

from tests.formats import tiny
from tests.formats.fuzz import FORMATS, Job, Report, Worker, fuzz, job, open_and_touch, samples_of
from tests.formats.mutate_checkpoints import zip_file
from vitral.errors import FormatError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory through /proc")


def samples(layout: str) -> list[tuple[tiny.Sample, dict[str, tiny.GgufParts]]]:
    if layout == "meta":
        pytest.importorskip("torch")
    return samples_of(layout)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_valid_checkpoints_open(layout: str, tmp_path: Path) -> None:
    for i, (sample, _) in enumerate(samples(layout)):
        open_and_touch(sample.write(tmp_path / str(i)))


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_damaged_checkpoints_give_a_model_or_a_typed_error(layout: str) -> None:
    report = fuzz(Job(layout, seed=1, count=1500, samples=samples(layout)))
    assert report.failures == []
    assert sum(report.outcomes.values()) == 1500
    assert report.outcomes["model"] > 0, "some damage is harmless"
    assert sum(report.outcomes.values()) - report.outcomes["model"] > 500, "most is not"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in tiny.LAYOUTS])
def test_damaged_vocabularies_templates_and_matrices_are_used_or_give_a_typed_error(kind: str) -> None:
    report = fuzz(job(kind, seed=2, count=150), n_workers=1)
    assert report.failures == []
    assert sum(report.outcomes.values()) == 150
    assert report.outcomes["model"] < 150, "most damage is seen"


def test_a_mutation_depends_on_its_number_alone(tmp_path: Path) -> None:
    same = Job("gguf", seed=3, count=50, samples=samples("gguf"))
    first, second = Worker(same, tmp_path / "a"), Worker(same, tmp_path / "b")
    assert [first.damaged(i) for i in range(50)] == [second.damaged(i) for i in reversed(range(50))][::-1]


def test_damage_to_an_archive_is_the_same_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    [(sample, _), *_] = samples("meta")
    data = next(data for name, data in sample.files.items() if name.endswith(".pth"))
    now = [zip_file(data, Random(i)) for i in range(40)]
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert [zip_file(data, Random(i)) for i in range(40)] == now


def misbehave(path: Path) -> None:
    """A reader with every fault that the fuzzer is there to find; valid files pass."""
    data = path.read_bytes()
    if data in [sample.files["model.bin"] for sample in tiny.llama2c()]:
        return
    match zlib.crc32(data) % 16:
        case 0:
            import os

            os.abort()
        case 1:
            while True:
                pass
        case 2:
            bytearray(300 << 20)
        case 3:
            raise KeyError("untyped")
    raise FormatError("typed")


def test_the_fuzzer_sees_crash_hang_memory_and_untyped_error() -> None:
    bad = Job("llama2c", 0, 80, samples("llama2c"), target="tests.formats.test_fuzz:misbehave", cpu_seconds=0.1)
    report: Report = fuzz(bad)
    counts = {failure.kind: failure.count for failure in report.failures}
    assert set(counts) == {"crash", "hang", "memory", "exception"}
    assert sum(counts.values()) + sum(report.outcomes.values()) == 80, "each is counted once"
    assert not report.clean
