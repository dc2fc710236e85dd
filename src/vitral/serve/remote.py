"""Another OpenAI-compatible server (vLLM, llama.cpp's, another Vitral) as an engine.

It is asked by `POST /v1/completions` with token ids, so that template, tokenizer and counts are ours. What comes back is
text: neither ids nor logits are known, so nothing of it can be replayed, scored, looked into or held to a form, and
`Facts.can` says so. At start it is asked which models it has, and whether its tokenizer reads our ids as our text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vitral.engine.request import SamplingParams
from vitral.errors import EngineLost, Overloaded, RequestError, SettingsError, VitralError
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import admitted
from vitral.loading import tokenizer_of
from vitral.serve.engines import Ask, Ended, Facts, OnEvent, Said
from vitral.serve.models import Model
from vitral.serve.residency import Residency
from vitral.tokenizer.load import load_tokenizer
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["RemoteEngine", "RemoteOptions", "open_remote"]

log = logging.getLogger("vitral.serve")

CONNECT_S = 5.0
SILENCE_S = 120.0  # between two pieces of an answer
LOOK_S = 5.0  # between two looks at whether it is there
_PROBE = "The window has nine panes of blue glass."
_REASONS = ("stop", "length")


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """name: what clients ask for, and its name there. url: with or without /v1. tokenizer: a model or a folder that has it.

    context_length: None to take what the server says. key: sent as a bearer token.
    """

    name: str
    url: str
    tokenizer: str
    context_length: int | None = None
    key: str | None = None


def open_remote(options: RemoteOptions, residency: Residency) -> Model:
    """A model that another server computes. It takes no memory here, so it is never let go.

    Raises SettingsError for an address that is none, and what opening the tokenizer raises.
    """
    path = Path(options.tokenizer).expanduser()
    tokenizer = load_tokenizer(path) if path.is_dir() else tokenizer_of(open_checkpoint(admitted(options.tokenizer)))
    engine = RemoteEngine(options, tokenizer)
    place = residency.add(options.name, engine, lambda: 0, pinned=True)
    return Model(options.name, tokenizer, engine, place)


class RemoteEngine:
    """A ModelEngine over HTTP. `transport` is for tests."""

    def __init__(
        self, options: RemoteOptions, tokenizer: Tokenizer, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._options, self._tokenizer = options, tokenizer
        self._client = httpx.AsyncClient(
            base_url=_address(options.url),
            headers={} if options.key is None else {"authorization": f"Bearer {options.key}"},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            transport=transport,
        )
        self._facts: Facts | None = None
        self._is_llama_cpp = False
        self._is_up = False
        self._deaths = 0
        self._next = 0
        self._running: dict[int, asyncio.Task[None]] = {}
        self._guard: asyncio.Task[None] | None = None

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            raise EngineLost(f"{self._where} has not been asked yet; try again in a moment")
        return self._facts

    @property
    def is_up(self) -> bool:
        return self._is_up

    @property
    def deaths(self) -> int:
        return self._deaths

    async def start(self) -> None:
        found = await self._model()
        context_length = self._options.context_length or _context_in(found)
        if context_length is None:
            raise SettingsError(f"{self._where} does not say how long its context is; say it with --context")
        self._is_llama_cpp = found.get("owned_by") == "llamacpp"
        self._facts = Facts(
            context_length=context_length,
            vocab_size=self._tokenizer.vocab_size,
            cache_tokens=0,  # what it has is not known
            can=frozenset(("generate",)),
            kernels={
                "engine": "remote",
                "url": str(self._client.base_url),
                "model": found["id"],
                "tokenizer": await self._tokenizers_agree(found["id"]),
            },
        )
        self._is_up = True
        self._guard = asyncio.create_task(self._watch())

    async def close(self) -> None:
        self._is_up = False
        tasks = [task for task in (self._guard, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def submit(self, ask: Ask, on_event: OnEvent) -> int:
        if not self._is_up:
            raise EngineLost(f"{self._where} is away; try again in a few seconds")
        self._next += 1
        number = self._next
        self._running[number] = task = asyncio.create_task(self._answered(ask, on_event))
        task.add_done_callback(lambda _: self._running.pop(number, None))
        return number

    def cancel(self, number: int) -> None:
        if number in self._running:
            self._running[number].cancel()

    async def load_adapter(self, name: str, path: str) -> str:
        raise RequestError(f"adapters of {self._options.name} are loaded where it runs, at {self._where}")

    async def unload_adapter(self, name: str) -> None:
        raise RequestError(f"adapters of {self._options.name} are unloaded where it runs, at {self._where}")

    async def _answered(self, ask: Ask, on_event: OnEvent) -> None:
        try:
            ended = await self._streamed(ask, on_event)
        except asyncio.CancelledError:  # the connection is closed with it, which ends the work there
            ended = Ended("cancelled")
        except httpx.HTTPError as error:
            self._lose()
            ended = Ended("error", error=EngineLost(f"{self._where} stopped while it answered: {_why(error)}"))
        except VitralError as error:
            ended = Ended("error", error=error)
        on_event(ended)

    async def _streamed(self, ask: Ask, on_event: OnEvent) -> Ended:
        if ask.params.max_tokens == 0:
            return Ended("length", made=0)
        body = {
            "model": self.facts.kernels["model"],
            "prompt": list(ask.prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
            **_sampling(ask.params, len(ask.prompt), self.facts.context_length, llama_cpp=self._is_llama_cpp),
        }
        reason, usage = None, None
        async with self._client.stream("POST", "completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise self._refusal(response)
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = self._object(data)
                if "error" in chunk:
                    raise EngineLost(f"{self._where} ended the answer: {_message(chunk)}")
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or ():
                    if text := choice.get("text"):
                        on_event(Said(str(text)))
                    reason = choice.get("finish_reason") or reason
        if reason not in _REASONS:
            how = "broke off" if reason is None else f"ended for the reason {reason!r}"
            raise EngineLost(f"the answer of {self._where} {how}; try again")
        return Ended(reason, *_counts(usage))

    async def _watch(self) -> None:
        """Know whether it is there, also while nobody asks."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._model()
            except VitralError as error:
                if self._is_up:
                    log.error("%s", error)
                self._lose()
            else:
                self._is_up = True

    def _lose(self) -> None:
        self._deaths += self._is_up
        self._is_up = False

    async def _model(self) -> dict[str, Any]:
        """What it says of the model. SettingsError if it has none of this name, EngineLost if it does not answer."""
        try:
            response = await self._client.get("models", timeout=CONNECT_S)
        except httpx.HTTPError as error:
            raise EngineLost(f"{self._where} cannot be reached: {_why(error)}") from None
        if response.status_code != 200:
            raise self._refusal(response)
        listed = self._object(response.text).get("data")
        found = {str(each.get("id")): each for each in listed or () if isinstance(each, dict)}
        if self._options.name not in found:
            there = ", ".join(sorted(found)) or "none"
            raise SettingsError(f"{self._where} has no model {self._options.name!r}; it has: {there}")
        return found[self._options.name]

    async def _tokenizers_agree(self, model: str) -> str:
        """Whether it reads our ids as our text: "verified", or why that cannot be asked. SettingsError if it does not."""
        ids = self._tokenizer.encode(_PROBE)
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "seed": 0}
        response = await self._posted("completions", {**body, "echo": True})
        if response.status_code in (400, 404, 422, 501):
            log.warning("%s cannot echo, so its tokenizer is taken on trust", self._where)
            return f"not verified: it cannot echo a prompt ({_message(_json(response.text))})"
        if response.status_code != 200:
            raise self._refusal(response)
        told = self._text_in(response)
        if not told.lstrip().startswith(_PROBE) and told == self._text_in(await self._posted("completions", body)):
            # llama.cpp's server takes no notice of echo, but has this route, as vLLM has
            response = await self._posted("../detokenize", {"model": model, "tokens": ids})
            answer = _json(response.text) or {}
            text = answer.get("content", answer.get("prompt"))
            if response.status_code != 200 or not isinstance(text, str):
                log.warning("%s does not echo, so its tokenizer is taken on trust", self._where)
                return "not verified: it does not echo a prompt, and has no /detokenize"
            told = text
        if not told.lstrip().startswith(_PROBE):
            raise SettingsError(
                f"{self._where} reads the ids of {_PROBE!r} as {told[:60]!r}: its tokenizer is not the one of "
                f"{self._options.tokenizer}; name the model's own with --tokenizer"
            )
        return "verified"

    async def _posted(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            return await self._client.post(self._client.base_url.join(path), json=body)
        except httpx.HTTPError as error:
            raise EngineLost(f"{self._where} cannot be reached: {_why(error)}") from None

    def _text_in(self, response: httpx.Response) -> str:
        try:
            return str(self._object(response.text)["choices"][0]["text"])
        except (LookupError, TypeError):
            raise self._other_form(response.text) from None

    def _refusal(self, response: httpx.Response) -> VitralError:
        """What an answer that is an error means for whoever asked us."""
        message = _message(_json(response.text))
        told = f"{self._where} answered {response.status_code}: {message}"
        match response.status_code:
            case 400 | 413 | 422:
                return RequestError(told)
            case 429:
                wait = response.headers.get("retry-after", "")
                return Overloaded(told, min(60, max(1, int(wait))) if wait.isascii() and wait.isdigit() else 5)
            case _:
                return EngineLost(told)

    def _object(self, text: str) -> dict[str, Any]:
        found = _json(text)
        if found is None:
            raise self._other_form(text)
        return found

    def _other_form(self, text: str) -> EngineLost:
        return EngineLost(f"{self._where} answers in another form than OpenAI's: {text[:80]!r}")

    @property
    def _where(self) -> str:
        url = self._client.base_url
        return f"the engine at {url.scheme}://{url.netloc.decode()}"


def _address(url: str) -> str:
    """The base of an OpenAI-compatible server.

    >>> _address("http://gpu:8000"), _address("https://fleet.example/llm/v1/")
    ('http://gpu:8000/v1/', 'https://fleet.example/llm/v1/')
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query or parts.fragment:
        raise SettingsError(
            f"the address of an engine is {url!r}; expected http://HOST:PORT or https://HOST/v1, a key in VITRAL_ENGINE_KEY"
        )
    return url.rstrip("/").removesuffix("/v1") + "/v1/"


def _sampling(params: SamplingParams, prompt: int, context_length: int, *, llama_cpp: bool) -> dict[str, Any]:
    """Parameters by OpenAI's names, and those that vLLM adds only where they are asked for.

    llama.cpp's server has a top-k and a min-p of its own unless it is told, another name for the repetition penalty,
    and lets it look at 64 tokens only.
    """
    seed = params.seed
    found: dict[str, Any] = {
        "max_tokens": context_length - prompt if params.max_tokens is None else params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if seed is not None:
        found["seed"] = seed - 2**64 if seed >= 2**63 else seed  # their seeds have a sign
    if params.logit_bias:
        found["logit_bias"] = {str(token): max(-100.0, bias) for token, bias in params.logit_bias.items()}
    for name, nothing in (("presence_penalty", 0), ("frequency_penalty", 0), ("top_k", 0), ("min_p", 0),
                          ("repetition_penalty", 1)):  # fmt: skip
        if getattr(params, name) != nothing:
            found[name] = getattr(params, name)
    if llama_cpp:
        found |= {"top_k": params.top_k, "min_p": params.min_p}
        if (penalty := found.pop("repetition_penalty", None)) is not None:
            found |= {"repeat_penalty": penalty, "repeat_last_n": context_length}
    return found


def _counts(usage: Any) -> tuple[int, None, int | None]:
    """Cached prompt tokens and tokens of the answer, as far as it told them; between them no error."""
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    made = usage.get("completion_tokens")
    return (cached if isinstance(cached, int) else 0, None, made if isinstance(made, int) else None)


def _context_in(found: Mapping[str, Any]) -> int | None:
    """The context's length by vLLM's name, by ours, and by llama.cpp's."""
    meta = found.get("meta")
    said = [found.get("max_model_len"), found.get("context_length")]
    said += [meta.get("n_ctx")] if isinstance(meta, Mapping) else []
    return next((each for each in said if isinstance(each, int) and each > 0), None)


def _json(text: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        return found if isinstance(found, dict) else None
    return None


def _message(answer: Mapping[str, Any] | None) -> str:
    """The text of an error, in whichever of the usual places it stands."""
    error = (answer or {}).get("error") or answer or {}
    text = error.get("message") or error.get("detail") if isinstance(error, Mapping) else error
    return str(text or "no reason given")[:500]


def _why(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
