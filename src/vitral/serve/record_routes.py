"""`GET /v1/records/{id}` and `POST /v1/records/{id}/replay`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.faults import not_found
from vitral.serve.replay import jobs_of, replay_on

__all__ = ["ReplayBody", "find", "read_record", "replay"]


class ReplayBody(Body):
    """Nothing to say yet: an empty object."""


async def read_record(call: Call) -> Response:
    """What an answer was made from and with."""
    return json_response(await find(call))


async def replay(call: Call) -> Response:
    """Run a record again: EXACT, or the first step that differs."""
    record = await find(call)
    tokens = sum(len(job.prompt) + len(job.steps) for job in jobs_of(record))
    model = call.service.models.get(record["model"]["name"])
    with call.service.admission.admit(tokens):
        return json_response((await replay_on(model, record, call.caller.tenant)).as_dict())


async def find(call: Call) -> dict[str, Any]:
    """The record that the address names, if it is the caller's."""
    id = call.path["id"]
    record = await call.service.records.find(id, call.caller.tenant)
    if record is None:
        raise not_found("record", id)
    return record
