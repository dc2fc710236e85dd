"""`POST /v1/embeddings`: final hidden states, pooled and of length 1.

The vector is the mean over all positions of the hidden state after the last norm (or the last position's), divided by
its Euclidean length. A model that was not trained for it gives similarities of modest worth; the numbers are exact.
"""

from __future__ import annotations

import base64
import math
from array import array
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from vitral.engine.request import SamplingParams
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.completions import Ids, Text, prompt_ids
from vitral.serve.faults import ApiError
from vitral.serve.run import Job, Run
from vitral.serve.sampling import notes

__all__ = ["EmbeddingsBody", "embeddings"]


class EmbeddingsBody(Body):
    """Texts or token ids. `pooling` is ours: "mean" (if not said) or "last"."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    pooling: Literal["mean", "last"] = "mean"


async def embeddings(call: Call) -> Response:
    """A vector for each input."""
    body: EmbeddingsBody = call.body
    model = call.service.models.get(body.model)
    model.need("hidden", "embeddings")
    prompts = await prompt_ids(model, body.input)
    empty = next((i for i, prompt in enumerate(prompts) if not prompt), None)
    if empty is not None:
        raise ApiError(400, "invalid_value", f"input {empty} has no tokens; at least one is needed", param="input")
    jobs = [Job(prompt, SamplingParams(max_tokens=0, seed=0), pooling=body.pooling) for prompt in prompts]
    run = Run(call.service, call.caller, model, call.route.path, jobs, notes(body))
    async with run:
        await run.finish()
    data: list[dict[str, Any]] = []
    for index, progress in enumerate(run.progress):
        assert progress.hidden is not None, "an engine that can show hidden states did not"
        length = math.sqrt(math.fsum(value * value for value in progress.hidden))
        vector = [value / length if length else 0.0 for value in progress.hidden]
        if body.dimensions not in (None, len(vector)):
            raise ApiError(
                400,
                "invalid_value",
                f"dimensions is {body.dimensions}; this model's vectors have {len(vector)}",
                param="dimensions",
            )
        shown = base64.b64encode(array("f", vector).tobytes()).decode() if body.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    prompt_tokens = run.usage[0]
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": model.name,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
            "record": run.record,
        },
        {"x-vitral-record": run.record},
    )
