"""`make bench` measures what it says it does."""

from __future__ import annotations

from pathlib import Path

from benchmarks.short import measure, streaming_read


def test_every_figure_is_a_measured_one(data_dir: Path) -> None:
    figures = measure(str(data_dir / "model-stories260k" / "stories260K.bin"), 1, prompt_tokens=32, answer_tokens=8)
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert 0 < figure.least <= figure.median <= figure.most, figure.name


def test_memory_is_read_at_a_speed_that_memory_has() -> None:
    assert 0.1 < streaming_read(1) < 1000
