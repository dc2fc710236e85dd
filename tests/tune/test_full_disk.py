"""No room while a run writes: a TuneError that says what to do, nothing half written, and a run that goes on.

The system itself refuses here, in the middle of a write: files of this process may only grow to a limit.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tune.conftest import write_chats
from tests.tune.test_run import losses, recipe, trained
from vitral.errors import TuneError
from vitral.tune.after import export_run
from vitral.tune.files import append_whole, staged, write_whole
from vitral.tune.record import LOG, read_record
from vitral.tune.run import STATE, Event, run_recipe
from vitral.tune.trainer import StepReport


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """Files can grow to so many bytes and no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "before", "try again")
    append_whole(tmp_path / "a", b", more", "try again")
    with (
        room(20),
        pytest.raises(TuneError, match=r"a cannot be written \(File too large; \d+ bytes are free.*try again"),
    ):
        append_whole(tmp_path / "a", b"x" * 30, "try again")
    with room(20), pytest.raises(TuneError, match="try again"):
        write_whole(tmp_path / "a", "x" * 30, "try again")
    with room(20), pytest.raises(TuneError, match="try again"), staged(tmp_path / "b", "try again") as place:
        place.write_text("x" * 30)
    assert (tmp_path / "a").read_text() == "before, more"
    assert names(tmp_path) == ["a"]


def limit_after(step: int, n_bytes: int, stack: list[Any]) -> Any:
    """Sets the limit once a step is reported; `stack` takes what lifts it."""

    def on_event(event: Event) -> None:
        if isinstance(event, StepReport) and event.step == step:
            limit = room(n_bytes)
            limit.__enter__()
            stack.append(limit)

    return on_event


@pytest.mark.parametrize(("step", "go_on"), [(1, "run it again"), (3, "vitral tune resume")])
def test_a_log_that_is_full_stops_a_run_that_then_goes_on_to_the_same_bits(
    step: int, go_on: str, tiny_chat: Path, tmp_path: Path
) -> None:
    """After the third step there is a state of the second; after the first there is none."""
    wanted, limits = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl")), list[Any]()
    run_recipe(wanted, tmp_path / "whole")
    log = (tmp_path / "whole" / LOG).read_text().splitlines(keepends=True)
    reported = sum(map(len, log[: 3 + step - 1]))  # rehearsal, evaluation, and the steps: what is there before the next
    with pytest.raises(TuneError, match=rf"log.jsonl cannot be written .*{go_on}"):
        try:
            run_recipe(wanted, tmp_path / "run", on_event=limit_after(step, reported + 20, limits))
        finally:
            limits.pop().__exit__(None, None, None)
    assert len(losses(tmp_path / "run")) == step
    assert (tmp_path / "run" / STATE).exists() == (step == 3)
    assert not (tmp_path / "run" / "adapter").exists()
    run_recipe(wanted, tmp_path / "run", resume=step == 3)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_result_that_does_not_fit_is_written_when_there_is_room(
    tune: str, tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitral.tune.run as module

    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), method={"tune": tune}, run={"steps": 1})
    name = "save_peft" if tune == "lora" else "write_merged"
    write = getattr(module, name)

    def crowded(*given: Any, **more: Any) -> Any:
        with room(2000):
            return write(*given, **more)

    monkeypatch.setattr(module, name, crowded)
    with pytest.raises(TuneError, match="vitral tune resume"):
        run_recipe(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and not read_record(tmp_path / "run").get("finished")
    monkeypatch.setattr(module, name, write)
    result = run_recipe(wanted, tmp_path / "run", resume=True)
    assert any(result.output.glob("*model.safetensors")) and read_record(tmp_path / "run")["finished"]
    if tune == "lora":
        for form in ("peft", "gguf-adapter", "gguf"):
            out = tmp_path / "out" / form
            with room(2000), pytest.raises(TuneError, match="export again"):
                export_run(tmp_path / "run", out, form)  # type: ignore[arg-type]
            assert names(out.parent) == []
        assert export_run(tmp_path / "run", out, "gguf").path.exists()
