"""`POST /v1/records/{id}/evidence`: values from inside the model for an answer of one's own, as one document."""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from vitral.errors import Overloaded
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.lens.analysis import Analysis, LawView
from vitral.lens.evidence import make
from vitral.serve.body import Body
from vitral.serve.call import Call
from vitral.serve.faults import ApiError
from vitral.serve.record_routes import find
from vitral.serve.replay import jobs_of

__all__ = ["MOST_TOKENS", "EvidenceBody", "create"]

MOST_TOKENS = 512
"""Of prompts and answers together: the law is slow, and its attention holds a square of them."""

_one = asyncio.Lock()  # the law computes in this process, beside the server


class EvidenceBody(Body):
    """What to compute, as `vitral evidence`."""

    lens: Annotated[int, Field(ge=0, le=64)] = 0
    attention: Annotated[int, Field(ge=0, le=64)] = 0
    routes: bool = False
    layers: Annotated[list[int], Field(max_length=1024)] | None = None


async def create(call: Call) -> Response:
    """Evidence of an answer: record, values and digests; not signed, the server holds no key."""
    body: EvidenceBody = call.body
    record = await find(call)
    tokens = sum(len(job.prompt) + len(job.steps) for job in jobs_of(record))
    if tokens > MOST_TOKENS:
        raise ApiError(
            400,
            "invalid_value",
            f"the record has {tokens} tokens; the server computes evidence of at most {MOST_TOKENS}: use vitral evidence",
        )
    model = call.service.models.get(record["model"]["name"])
    if model.adapter is not None or record["model"].get("adapter") is not None:
        raise ApiError(400, "unsupported_by_engine", "evidence of an adapter's answer: use vitral evidence --adapter")
    if model.source is None:
        raise ApiError(400, "unsupported_by_engine", f"the weights of model {model.name!r} are not on this machine")
    layers = None if body.layers is None else tuple(body.layers)
    analysis = Analysis(body.lens, body.attention, body.routes, layers)
    if _one.locked():
        raise Overloaded("evidence of another answer is being computed; ask again soon")
    source, facts = model.source, model.facts

    def compute() -> bytes:
        checkpoint = open_checkpoint(resolve(source))
        glass = LawView(checkpoint.spec, checkpoint.weights.law(), facts.context_length, facts.kernels["kv_type"])
        return make(glass, record, analysis)

    async with _one:
        with call.service.admission.admit(tokens):
            data = await asyncio.to_thread(compute)
    return Response(data, 200, {"x-vitral-record": record["id"]}, "application/json")
