"""Another OpenAI-compatible server as an engine: its answers go through, what it cannot do is refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import CHAT, TINY
from tests.serve.live import Live, live, metric, wait_until
from vitral.engine.request import SamplingParams
from vitral.errors import EngineLost, Overloaded, RequestError, SettingsError, VitralError
from vitral.serve.engines import Ask, Ended, EngineEvent, Said
from vitral.serve.remote import _PROBE, RemoteEngine, RemoteOptions
from vitral.tokenizer.load import load_tokenizer
from vitral.tokenizer.tokenizer import Tokenizer

CHATTING = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Name three colours of glass."}],
    "max_tokens": 12,
    "temperature": 1.0,
    "seed": 2**64 - 5,
}
STORY = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stop": ["zebra"]}


@pytest.fixture(scope="module")
def front(server: Live, tmp_path_factory: pytest.TempPathFactory, tiny_path: str) -> Iterator[Live]:
    """A server without a model of its own; both are the other server's."""
    far = [f"--engine={CHAT}={server.url}", f"--engine={TINY}={server.url}/v1/"]
    own = [f"--tokenizer={CHAT}={CHAT}", f"--tokenizer={TINY}={tiny_path}"]
    with live(tmp_path_factory.mktemp("front"), *far, *own) as running:
        yield running


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHATTING), ("/v1/completions", STORY)])
def test_an_answer_from_there_is_the_one_it_gives(server: Live, front: Live, path: str, body: dict[str, Any]) -> None:
    direct, through = (each.post(path, body).json() for each in (server, front))
    assert text_of(through) == text_of(direct) != ""
    assert through["system_fingerprint"] is None  # nothing is promised of the bits
    assert through["choices"][0]["finish_reason"] == direct["choices"][0]["finish_reason"]
    for count in ("prompt_tokens", "completion_tokens"):
        assert through["usage"][count] == direct["usage"][count]
    pieces = [event["choices"][0] for event in front.events(path, body)]
    assert "".join(p["text"] if "text" in p else p["delta"].get("content", "") for p in pieces) == text_of(direct)
    assert len(pieces) > 3  # it comes as it is made


def test_a_stop_string_and_a_client_that_leaves_end_the_work_there(server: Live, front: Live) -> None:
    whole = text_of(front.post("/v1/completions", {**STORY, "max_tokens": 40}).json())
    stop = whole.split()[4]
    cut = front.post("/v1/completions", {**STORY, "max_tokens": 40, "stop": stop}).json()
    assert text_of(cut) == whole[: whole.index(stop)]
    assert cut["usage"]["completion_tokens"] > 0
    with front.http.stream("POST", "/v1/completions", json={**STORY, "max_tokens": 450, "stream": True}) as response:
        next(response.iter_lines())
    wait_until(lambda: metric(front, "vitral_sequences_in_flight") == 0)
    wait_until(lambda: metric(server, "vitral_sequences_in_flight") == 0)


@pytest.mark.parametrize(
    ("path", "more", "named"),
    [
        ("/v1/chat/completions", {"logprobs": True}, "log-probabilities"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "held to a form"),
        (
            "/v1/chat/completions",
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            "calls of tools",
        ),
        ("/v1/chat/completions", {"inspect": {"light": True}}, "forward pass"),
        ("/v1/completions", {"echo": True, "logprobs": 1}, "log-probabilities"),
        ("/v1/embeddings", {"input": "x"}, "embeddings"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "log-probabilities"),
        ("/v1/inspect", {"light": True}, "forward pass"),
        (f"/v1/models/{CHAT}/adapters", {"name": "a", "path": "/nowhere"}, "adapter"),
    ],
)
def test_what_that_engine_cannot_do_is_refused_by_name(
    front: Live, path: str, more: dict[str, Any], named: str
) -> None:
    body = {"/v1/chat/completions": CHATTING, "/v1/completions": STORY, "/v1/inspect": {"model": CHAT, "prompt": "x"}}
    given = {**body.get(path, {} if "adapters" in path else {"model": CHAT}), **more}
    response = front.post(path, given)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_by_engine"), response.text
    assert named in response.json()["error"]["message"] and repr(given.get("model", CHAT)) in response.text


def test_its_record_says_that_it_cannot_be_replayed(front: Live) -> None:
    id = front.post("/v1/completions", STORY).json()["record"]
    record = front.http.get(f"/v1/records/{id}").json()
    assert "neither ids nor logits" in record["not_replayable"]
    (sequence,) = record["sequences"]
    assert (sequence["answer"]["count"], sequence["logits"]) == (12, [])
    assert sequence["answer"]["text"] and "ids" not in sequence["answer"]
    assert record["model"]["weights"] is None
    for what in ("replay", "evidence"):
        refused = front.post(f"/v1/records/{id}/{what}", {})
        assert refused.status_code == 400 and "cannot be run again" in refused.json()["error"]["message"]


def test_the_server_says_what_the_engine_is_and_that_it_is_there(front: Live) -> None:
    told = {each["model"]: each for each in front.http.get("/v1/engine").json()["engines"]}
    assert told[CHAT]["can"] == ["generate"]
    assert told[CHAT]["kernels"]["tokenizer"] == "verified"
    assert told[CHAT]["context_length"] == 512
    assert front.http.get("/health").json()["engines"] == {CHAT: "ok", TINY: "ok"}
    assert front.workers() == []


# One engine over a server that is written here.


@pytest.fixture(scope="module")
def tokenizer(tiny_path: str) -> Tokenizer:
    return load_tokenizer(Path(tiny_path).parent)


Answers = Callable[[httpx.Request], httpx.Response]


def events_of(*chunks: dict[str, Any], done: bool = True) -> httpx.Response:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * done
    return httpx.Response(200, text=": comment\n\n" + "".join(lines))


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


class Scripted:
    """A server that lists a model, echoes, and answers what a test says."""

    def __init__(self, tokenizer: Tokenizer, answer: Answers, echo: Answers | None = None) -> None:
        self.tokenizer, self.answer, self.echo = tokenizer, answer, echo
        self.asked: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = [{"id": "far", "max_model_len": 64}]
        self.detokenized: dict[str, str] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": self.models})
        body = json.loads(request.content)
        if request.url.path == "/detokenize":
            assert body["tokens"] == self.tokenizer.encode(_PROBE)
            return httpx.Response(404) if self.detokenized is None else httpx.Response(200, json=self.detokenized)
        if not body.get("stream") and not body.get("echo"):
            return httpx.Response(200, json=piece(" x"))
        if body.get("echo"):
            if self.echo is not None:
                return self.echo(request)
            return httpx.Response(200, json=piece(self.tokenizer.decode(body["prompt"], skip_special=True) + " x"))
        self.asked.append(body)
        return self.answer(request)

    def ask(self, params: SamplingParams | None = None, context: int | None = None) -> list[EngineEvent]:
        """Start an engine over it, ask once, and return all events."""

        async def run() -> list[EngineEvent]:
            options = RemoteOptions("far", "http://far:1/v1", "t", context, "secret")
            engine = RemoteEngine(options, self.tokenizer, httpx.MockTransport(self))
            events: asyncio.Queue[EngineEvent] = asyncio.Queue()
            found: list[EngineEvent] = []
            try:
                await engine.start()
                engine.submit(Ask((1, 5, 6), params or SamplingParams(max_tokens=4, seed=2**64 - 1)), events.put_nowait)
                while not found or not isinstance(found[-1], Ended):
                    found.append(await events.get())
            finally:
                await engine.close()
            return found

        return asyncio.run(run())


def test_ids_and_parameters_go_there_and_text_and_counts_come_back(tokenizer: Tokenizer) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}}
    script = Scripted(tokenizer, lambda request: events_of(piece("a"), piece(" b", "length"), usage))
    assert script.ask() == [Said("a"), Said(" b"), Ended("length", 2, None, 7)]
    (body,) = script.asked
    assert (body["prompt"], body["seed"], body["max_tokens"], body["stream"]) == ([1, 5, 6], -1, 4, True)
    assert not {"top_k", "min_p", "repetition_penalty", "logit_bias"} & set(body)
    script.ask(SamplingParams(top_k=5, logit_bias={3: float("-inf")}))
    assert (script.asked[1]["top_k"], script.asked[1]["logit_bias"], script.asked[1]["max_tokens"]) == (
        5,
        {"3": -100.0},
        61,
    )


def test_what_llama_cpp_does_unless_told_and_names_otherwise_is_said_in_its_words(tokenizer: Tokenizer) -> None:
    script = Scripted(tokenizer, lambda request: events_of(piece("a", "stop")))
    script.models = [{"id": "far", "owned_by": "llamacpp", "meta": {"n_ctx": 48}}]
    script.ask(SamplingParams(repetition_penalty=1.5))
    (body,) = script.asked
    assert (body["top_k"], body["min_p"], body["max_tokens"]) == (0, 0, 45)
    assert (body["repeat_penalty"], body["repeat_last_n"]) == (1.5, 48) and "repetition_penalty" not in body


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (
            lambda r: httpx.Response(429, json={"error": {"message": "busy"}}, headers={"retry-after": "7"}),
            Overloaded,
            "busy",
        ),
        (lambda r: httpx.Response(400, json={"error": {"message": "no top_k"}}), RequestError, "no top_k"),
        (lambda r: httpx.Response(401, json={"detail": "who?"}), EngineLost, "401: who?"),
        (lambda r: httpx.Response(500, text="<html>"), EngineLost, "no reason given"),
        (lambda r: events_of(piece("a"), done=False), EngineLost, "broke off"),
        (lambda r: events_of(piece("a", "content_filter")), EngineLost, "content_filter"),
        (lambda r: events_of(piece("a"), {"error": {"message": "out of memory"}}), EngineLost, "out of memory"),
        (lambda r: httpx.Response(200, text="data: [1]\n\n"), EngineLost, "another form"),
    ],
)
def test_what_goes_wrong_there_is_a_typed_error_here(
    tokenizer: Tokenizer, answer: Answers, kind: type[VitralError], says: str
) -> None:
    *_, ended = Scripted(tokenizer, answer).ask()
    assert isinstance(ended, Ended) and ended.reason == "error"
    assert type(ended.error) is kind and says in str(ended.error) and "http://far:1" in str(ended.error)
    if isinstance(ended.error, Overloaded):
        assert ended.error.retry_after_s == 7


def test_another_tokenizer_another_name_and_an_unknown_context_stop_the_start(tokenizer: Tokenizer) -> None:
    def fine(request: httpx.Request) -> httpx.Response:
        return events_of(piece("a", "stop"))

    with pytest.raises(SettingsError, match="its tokenizer is not the one of"):
        Scripted(tokenizer, fine, lambda r: httpx.Response(200, json=piece("Fenster"))).ask()
    script = Scripted(tokenizer, fine)
    script.models = [{"id": "near", "max_model_len": 64}]
    with pytest.raises(SettingsError, match="has no model 'far'; it has: near"):
        script.ask()
    script.models = [{"id": "far"}]
    with pytest.raises(SettingsError, match="--context"):
        script.ask()
    assert script.ask(context=32) == [Said("a"), Ended("stop")]
    silent = Scripted(tokenizer, fine, lambda r: httpx.Response(200, json=piece(" x")))  # as llama.cpp's server
    assert silent.ask() == [Said("a"), Ended("stop")]  # on trust
    silent.detokenized = {"content": _PROBE}
    assert silent.ask() == [Said("a"), Ended("stop")]
    silent.detokenized = {"prompt": "Fenster"}  # by vLLM's name
    with pytest.raises(SettingsError, match="its tokenizer is not the one of"):
        silent.ask()
    no_echo = Scripted(tokenizer, fine, lambda r: httpx.Response(400, json={"error": {"message": "no echo"}}))
    assert no_echo.ask() == [Said("a"), Ended("stop")]


def test_an_engine_that_is_away_is_said_to_be_and_comes_back(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitral.serve.remote.LOOK_S", 0.01)
    away = False

    def answer(request: httpx.Request) -> httpx.Response:
        if away:
            raise httpx.ConnectError("refused", request=request)
        return script(request)

    script = Scripted(tokenizer, lambda r: events_of(piece("a", "stop")))

    async def run() -> None:
        nonlocal away
        options = RemoteOptions("far", "http://far:1", "t", None, "secret")
        engine = RemoteEngine(options, tokenizer, httpx.MockTransport(answer))
        await engine.start()
        assert engine.is_up
        away = True
        async with asyncio.timeout(10):
            while engine.is_up:
                await asyncio.sleep(0.01)
        assert engine.deaths == 1
        with pytest.raises(EngineLost, match="is away"):
            engine.submit(Ask((1,), SamplingParams()), lambda event: None)
        away = False
        async with asyncio.timeout(10):
            while not engine.is_up:
                await asyncio.sleep(0.01)
        await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("url", ["far:1", "ftp://far", "http://user:pass@far", "http://far?key=1", "http://", ""])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(tokenizer: Tokenizer, url: str) -> None:
    with pytest.raises(SettingsError, match="VITRAL_ENGINE_KEY"):
        RemoteEngine(RemoteOptions("far", url, "t"), tokenizer)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--engine", "a=http://x"], "--tokenizer a=PATH go together"),
        (["--tokenizer", "a=b"], "--engine a=URL"),
        (["--engine", "http"], "NAME=URL"),
        (["--engine", "a=http://x", "--engine", "a=http://y", "--tokenizer", "a=b"], "given twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    given: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitral.cli.main import _code

    assert _code(["serve", *given, "--folder", str(tmp_path)]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
