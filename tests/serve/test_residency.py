"""Models under a memory budget: who is loaded, who goes, who stays, and what is said when nothing fits."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.live import Live, live, wait_until
from vitral.errors import FormatError, Overloaded, SettingsError, ShuttingDown
from vitral.serve.faults import ApiError
from vitral.serve.residency import Place, Residency


class Fake:
    """An engine that notes what is done to it, and takes a moment for it."""

    def __init__(self, name: str, log: list[str], broken: bool = False) -> None:
        self.name, self.log, self.broken = name, log, broken

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise FormatError("the file is damaged")
        self.log.append(f"+{self.name}")

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.log.append(f"-{self.name}")


def residency(sizes: dict[str, int], budget: int | None, pinned: str = "", room_s: float = 5.0):  # type: ignore[no-untyped-def]
    log: list[str] = []
    made = Residency(budget, room_s)
    places = [made.add(name, Fake(name, log), lambda n=n: n, pinned=name in pinned) for name, n in sizes.items()]
    return made, places, log


async def ask(place: Place) -> None:
    async with place.used():
        await asyncio.sleep(0)


def test_without_a_budget_all_are_loaded_and_stay() -> None:
    made, places, log = residency({"a": 50, "b": 50}, None)

    async def run() -> None:
        await made.start()
        for place in places:
            await ask(place)

    asyncio.run(run())
    assert log == ["+a", "+b"]


def test_the_one_used_longest_ago_goes_first() -> None:
    made, (a, b, c), log = residency({"a": 40, "b": 40, "c": 40}, 100)

    async def run() -> None:
        await made.start()
        await ask(b)
        await ask(a)
        await ask(c)  # b goes: a was used later
        await ask(a)
        await ask(b)  # c goes

    asyncio.run(run())
    assert log == ["+a", "+b", "-b", "+c", "-c", "+b"]
    assert made.used_bytes == 80


def test_a_pinned_model_stays_even_if_it_is_never_used() -> None:
    made, (_, b, c), log = residency({"a": 40, "b": 40, "c": 40}, 100, pinned="a")

    async def run() -> None:
        await made.start()
        for place in (b, c, b, c):
            await ask(place)

    asyncio.run(run())
    assert "-a" not in log
    assert log.count("-b") == 2


def test_a_model_that_is_in_use_is_never_let_go_but_takes_nobody_new() -> None:
    made, (a, b), log = residency({"a": 60, "b": 60}, 100)

    async def run() -> None:
        await made.start()
        async with a.used():
            newcomer = asyncio.create_task(ask(b))
            await asyncio.sleep(0.01)
            late = asyncio.create_task(ask(a))  # behind b, though a is still there
            await asyncio.sleep(0.01)
            assert log == ["+a"]
            assert not newcomer.done()
            assert not late.done()
        await asyncio.gather(newcomer, late)

    asyncio.run(run())
    assert log == ["+a", "-a", "+b", "-b", "+a"]


def test_two_models_that_exclude_each_other_both_serve_everyone() -> None:
    made, places, log = residency({"a": 60, "b": 60}, 100)
    served = {"a": 0, "b": 0}

    async def client(place: Place) -> None:
        for _ in range(10):
            async with place.used():
                await asyncio.sleep(0.001)
                served[place.name] += 1

    async def run() -> None:
        await made.start()
        await asyncio.wait_for(asyncio.gather(*(client(place) for place in places * 5)), 20)

    asyncio.run(run())
    assert served == {"a": 50, "b": 50}
    assert made.used_bytes == 60


def test_when_answers_hold_all_memory_too_long_it_says_when_to_come_back() -> None:
    made, (a, b), log = residency({"a": 60, "b": 60}, 100, room_s=0.05)

    async def run() -> None:
        await made.start()
        async with a.used():
            with pytest.raises(Overloaded, match=r"b needs 0 MB.*come back") as caught:
                await ask(b)
            assert caught.value.retry_after_s >= 1
            await ask(a)  # it takes requests again

    asyncio.run(run())
    assert log == ["+a"]


def test_a_wait_ends_when_the_server_stops() -> None:
    made, (a, b), _ = residency({"a": 60, "b": 60}, 100)

    async def run() -> None:
        await made.start()
        async with a.used():
            waiting = asyncio.create_task(ask(b))
            await asyncio.sleep(0.01)
            made.stop("the server is shutting down")
            with pytest.raises(ShuttingDown):
                await waiting

    asyncio.run(run())


def test_whoever_leaves_does_not_take_the_load_from_others_nor_holds_the_memory() -> None:
    made, (a, b), log = residency({"a": 60, "b": 60}, 100)

    async def run() -> None:
        await made.start()
        leaver, stayer = (asyncio.create_task(ask(b)) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        await stayer
        assert b.users == 0
        async with b.used():  # nobody is left who waits for a: b is not asked to leave
            lonely = asyncio.create_task(ask(a))
            await asyncio.sleep(0.01)
            lonely.cancel()
            await asyncio.sleep(0.01)
            await asyncio.wait_for(ask(b), 1)

    asyncio.run(run())
    assert log == ["+a", "-a", "+b"]


def test_one_that_exceeds_the_budget_is_refused_with_the_figures() -> None:
    made, _, _ = residency({"a": 40_000_000, "b": 70_000_000}, 100_000_000, pinned="a")
    with pytest.raises(SettingsError, match=r"b needs 70 MB beside the pinned models' 40 MB; the memory budget is 100"):
        made.check()


def test_a_model_that_cannot_be_loaded_harms_no_other() -> None:
    made, (a, b), log = residency({"a": 60, "b": 60}, 100)
    b._engine.broken = True

    async def run() -> None:
        await made.start()
        for _ in range(2):
            with pytest.raises(ApiError, match="b' cannot be loaded: the file is damaged"):
                await ask(b)
        await ask(a)

    asyncio.run(run())
    assert log == ["+a", "-a", "+a"]


MB = 1_000_000


def copies(model: Path, folder: Path, names: str) -> list[Path]:
    """The same model under several names, in a folder with its tokenizer."""
    for file in model.parent.iterdir():
        if file != model:
            shutil.copy(file, folder)
    return [Path(shutil.copy(model, folder / f"{name}.bin")) for name in names]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, tiny_path: str) -> Iterator[Live]:
    """Three models, of which two fit; the first is pinned."""
    folder = tmp_path_factory.mktemp("budget")
    paths = copies(Path(tiny_path), folder, "abc")
    with live(folder, *map(str, paths), "--memory-budget", "360MB", "--pin", str(paths[0])) as server:
        yield server


def loaded(server: Live) -> list[str]:
    return [each["model"] for each in server.http.get("/v1/engine").json()["engines"] if each["loaded"]]


def asking(name: str, n: int = 4) -> dict[str, object]:
    return {"model": f"{name}.bin", "prompt": "Once upon", "max_tokens": n, "temperature": 1.0, "seed": 1}


def test_models_are_loaded_when_they_are_asked_for_and_the_answers_are_the_same(three: Live) -> None:
    assert [each["id"] for each in three.http.get("/v1/models").json()["data"]] == ["a.bin", "b.bin", "c.bin"]
    assert loaded(three) == ["a.bin", "b.bin"]
    assert len(three.workers()) == 2
    texts = set()
    for name in "cbcbabc":
        answer = three.post("/v1/completions", asking(name))
        assert answer.status_code == 200, answer.text
        texts.add(answer.json()["choices"][0]["text"])
        assert len(three.workers()) == 2
        assert {"a.bin", f"{name}.bin"} <= set(loaded(three))
    assert len(texts) == 1
    told = three.http.get("/v1/engine").json()
    assert told["memory"]["reserved_bytes"] <= told["memory"]["budget_bytes"] == 360 * MB
    pinned, b, _ = told["engines"]
    assert (pinned["pinned"], pinned["loads"], pinned["evictions"]) == (True, 1, 0)
    assert b["evictions"] >= 2
    health = three.http.get("/health")
    assert health.status_code == 200
    assert health.json()["engines"] == {"a.bin": "ok", "b.bin": "not loaded", "c.bin": "ok"}
    assert three.http.get("/ready").status_code == 200
    lines = three.http.get("/metrics").text.splitlines()
    assert 'vitral_model_loaded{model="b.bin"} 0.0' in lines
    assert "vitral_memory_budget_bytes 3.6e+08" in lines
    for what in ("loads", "evictions"):
        assert f"# TYPE vitral_model_{what}_total counter" in lines
        assert f'vitral_model_{what}_total{{model="b.bin"}} {b[what]:.1f}' in lines
    assert not any(line.startswith('vitral_engine_up{model="b.bin"}') for line in lines)


def test_models_that_exclude_each_other_answer_a_crowd_and_records_replay(three: Live) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: three.post("/v1/completions", asking(name, 40)), "bcabcabcbcbc"))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    for answer in answers[:3]:
        replayed = three.post(f"/v1/records/{answer.json()['record']}/replay", {})
        assert replayed.json()["verdict"] == "EXACT"


def test_what_needs_no_engine_loads_none(three: Live) -> None:
    wait_until(lambda: three.post("/v1/completions", asking("b")).status_code == 200)
    before = loaded(three)
    assert three.post("/v1/tokenize", {"model": "c.bin", "text": "Once"}).status_code == 200
    assert three.post("/v1/completions", {**asking("c"), "logit_bias": {"99999": 1}}).status_code == 400
    assert three.post("/v1/completions", {**asking("c"), "max_tokens": 100_000}).status_code == 400
    assert loaded(three) == before == ["a.bin", "b.bin"]


def test_an_adapter_outlives_that_its_model_made_room(tmp_path: Path, tiny_path: str) -> None:
    from tests.formats.test_adapters import random_parts, write_peft
    from vitral.formats.checkpoint import open_checkpoint

    parts = random_parts(open_checkpoint(Path(tiny_path)).spec, rank=4, scale=2.0)
    lora = write_peft(tmp_path / "lora", parts, {"r": 4, "lora_alpha": 8})
    paths = copies(Path(tiny_path), tmp_path, "ab")
    first = ["--adapter", f"first={lora}"]
    with live(tmp_path, *map(str, paths), "--memory-budget", "180MB", *first) as server:
        ids = [each["id"] for each in server.http.get("/v1/models").json()["data"]]
        assert ids == ["a.bin", "a.bin:first", "b.bin"]
        told = server.post("/v1/models/b.bin/adapters", {"name": "late", "path": str(lora)})
        assert told.status_code == 200, told.text
        assert loaded(server) == ["b.bin"]
        body = {**asking("b", 12), "model": "b.bin:late"}
        wanted = server.post("/v1/completions", body).json()["choices"][0]["text"]
        first_one = server.post("/v1/completions", {**body, "model": "a.bin:first"}).json()["choices"][0]["text"]
        assert loaded(server) == ["a.bin"]
        assert server.post("/v1/completions", body).json()["choices"][0]["text"] == wanted == first_one
        assert server.post("/v1/completions", asking("b", 12)).json()["choices"][0]["text"] != wanted
        server.post("/v1/completions", asking("a"))
        assert server.http.delete("/v1/models/b.bin/adapters/late").json()["deleted"]  # while b is not loaded
        assert server.post("/v1/completions", body).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--memory-budget", "100MB"], r"exceeds the memory budget alone.*need more than the 100 MB"),
        (["--memory-budget", "9000GB"], "are free; choose a smaller one"),
        (["--memory-budget", "much"], "expected a size such as 6GB"),
        (["--pin", "x"], "--pin needs --memory-budget"),
        (["--memory-budget", "1GB", "--pin", "x"], "--pin is 'x'; allowed: the models"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line_and_code_2(
    arguments: list[str], says: str, tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitral.cli.main import _code

    assert _code(["serve", tiny_path, "--folder", str(tmp_path), "--port", "0", *arguments]) == 2
    import re

    assert re.search(says, " ".join(capsys.readouterr().err.split()))
