"""`POST /v1/score` and `/v1/rerank`: how likely a text is after another one.

score: the log-probability of `text_2` as the continuation of `text_1`. rerank: how likely the query is after a
document, the query likelihood of Sachan et al., "Improving Passage Retrieval with Zero-Shot Question Generation"
(arXiv 2204.07496), which needs no training: relevance is exp(mean log-probability of the query's tokens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from starlette.responses import Response

from vitral.engine.request import SamplingParams
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.completions import prompt_ids
from vitral.serve.faults import ApiError
from vitral.serve.models import Model
from vitral.serve.run import Job, Run

__all__ = ["RerankBody", "ScoreBody", "rerank", "score"]

Words = Annotated[str, Field(min_length=1, max_length=1 << 20)]
_BEFORE_QUERY = "Passage: {}\nPlease write a question based on this passage.\nQuestion:"


class ScoreBody(Body):
    """`text_1` is one text for all of `text_2`, or one for each."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    text_1: Words | Annotated[list[Words], Field(min_length=1, max_length=128)]
    text_2: Words | Annotated[list[Words], Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _paired(self) -> ScoreBody:
        if isinstance(self.text_1, list) and (
            not isinstance(self.text_2, list) or len(self.text_1) != len(self.text_2)
        ):
            raise ValueError("text_1 is a list, so text_2 must be one of the same length")
        return self


class Document(Body):
    """A document as other servers take it."""

    text: Words


class RerankBody(Body):
    """Documents, texts or {"text": ...}, to be ordered by how well they answer the query."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    query: Words
    documents: Annotated[list[Words | Document], Field(min_length=1, max_length=128)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True


async def score(call: Call) -> Response:
    """The log-probability of texts as continuations of others."""
    body: ScoreBody = call.body
    model = call.service.models.get(body.model)
    seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    firsts = [body.text_1] * len(seconds) if isinstance(body.text_1, str) else body.text_1
    run, found = await _likelihoods(call, model, list(zip(firsts, seconds, strict=True)))
    data = [
        {
            "index": index,
            "object": "score",
            "score": sum(values),
            "mean": sum(values) / len(values),
            "tokens": len(values),
        }
        for index, values in enumerate(found)
    ]
    return json_response(
        {"object": "list", "model": model.name, "data": data, "usage": _usage(run), "record": run.record},
        {"x-vitral-record": run.record},
    )


async def rerank(call: Call) -> Response:
    """Documents, the most relevant first."""
    body: RerankBody = call.body
    model = call.service.models.get(body.model)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    pairs = [(_BEFORE_QUERY.format(text), " " + body.query) for text in texts]
    run, found = await _likelihoods(call, model, pairs)
    relevance = [math.exp(sum(values) / len(values)) for values in found]
    order = sorted(range(len(relevance)), key=lambda i: (-relevance[i], i))[: body.top_n]
    results = [
        {"index": i, "relevance_score": relevance[i]}
        | ({"document": {"text": texts[i]}} if body.return_documents else {})
        for i in order
    ]
    return json_response(
        {"id": run.record, "model": model.name, "results": results, "usage": _usage(run), "record": run.record},
        {"x-vitral-record": run.record},
    )


async def _likelihoods(call: Call, model: Model, pairs: Sequence[tuple[str, str]]) -> tuple[Run, list[list[float]]]:
    """For each pair the log-probabilities of the second text's tokens after the first."""
    model.need("prompt_logprobs", "log-probabilities of a prompt")
    contexts = await prompt_ids(model, [first for first, _ in pairs])
    wholes = await prompt_ids(model, [first + second for first, second in pairs])
    starts = [_shared(context, whole) for context, whole in zip(contexts, wholes, strict=True)]
    for index, (start, whole) in enumerate(zip(starts, wholes, strict=True)):
        if not 0 < start < len(whole):
            raise ApiError(
                400,
                "invalid_value",
                f"the texts of pair {index} make one token together, so none comes after another; begin text_2 with a space",
                param="text_2",
            )
    jobs = [Job(whole, SamplingParams(max_tokens=0, prompt_logprobs=0, seed=0)) for whole in wholes]
    run = Run(call.service, call.caller, model, call.route.path, jobs)
    async with run:
        await run.finish()
    found = []
    for start, progress in zip(starts, run.progress, strict=True):
        assert progress.prompt_scores is not None, "an engine that can score prompts did not"
        found.append([each.logprob for each in progress.prompt_scores[start - 1 :]])
    return run, found


def _shared(context: tuple[int, ...], whole: tuple[int, ...]) -> int:
    """Tokens both begin with: where a token spans the border it counts as part of the second text."""
    n = 0
    while n < min(len(context), len(whole)) and context[n] == whole[n]:
        n += 1
    return n


def _usage(run: Run) -> dict[str, Any]:
    return {"prompt_tokens": run.usage[0], "total_tokens": run.usage[0]}
