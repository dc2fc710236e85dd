"""Health is that the engine decodes, not that a port is open."""

from __future__ import annotations

import asyncio

from vitral.engine.request import SamplingParams
from vitral.errors import EngineLost
from vitral.serve.engines import Ask, Digest, Ended, EngineEvent, Token
from vitral.serve.models import Model

__all__ = ["Canary"]

CANARY_TOKENS = 2
CANARY_S = 10.0


class Canary:
    """A fixed short prompt that an engine must always answer with the same tokens and the same logits."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[list[Token], list[Digest]]] = {}
        self._asked: dict[str, asyncio.Task[str | None]] = {}

    async def ask(self, model: Model) -> str | None:
        """What is wrong with the engine of a loaded model, or None. Callers at the same time share one answer."""
        task = self._asked.get(model.name)
        if task is None or task.done():
            task = self._asked[model.name] = asyncio.ensure_future(self._ask(model))
        return await asyncio.shield(task)

    async def _ask(self, model: Model) -> str | None:
        with model.place.kept():
            return await self._decoded(model)

    async def _decoded(self, model: Model) -> str | None:
        prompt = (model.tokenizer.bos_id or 0, *range(1, 4))
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        params = SamplingParams(max_tokens=CANARY_TOKENS, seed=0)
        tokens: list[Token] = []
        digests: list[Digest] = []
        try:
            number = model.engine.submit(Ask(prompt, params, "canary", b"canary", digests=True), events.put_nowait)
            try:
                async with asyncio.timeout(CANARY_S):
                    while not isinstance(event := await events.get(), Ended):
                        if isinstance(event, Token):
                            tokens.append(event)
                        elif isinstance(event, Digest):
                            digests.append(event)
            except TimeoutError:
                model.engine.cancel(number)
                return f"the engine did not decode {CANARY_TOKENS} tokens within {CANARY_S:g} s"
        except EngineLost as error:
            return str(error)
        if event.error is not None:
            return str(event.error)
        made = (tokens, digests)
        if self._expected.setdefault(model.name, made) != made:
            return "the engine answers a fixed prompt with other bits than before"
        return None
