"""`POST /v1/models/{model}/adapters` and `DELETE /v1/models/{model}/adapters/{name}`: LoRA adapters, while requests run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from vitral.errors import FormatError, ModelNotFound
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.faults import ApiError, not_found
from vitral.serve.models import Model

__all__ = ["AdapterBody", "load", "unload"]


class AdapterBody(Body):
    """A PEFT folder or a GGUF file on the server's own disk, by its absolute path."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    path: Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=4096)]


async def load(call: Call) -> Response:
    """Load an adapter; from then on the model `MODEL:NAME` is served."""
    body: AdapterBody = call.body
    model = _base(call)
    model.need("adapters", "loading an adapter")
    async with model.place.used():
        try:
            digest = await model.engine.load_adapter(body.name, body.path)
        except (FormatError, ModelNotFound) as error:  # TensorMismatch among them: no module matches, or another base
            raise ApiError(400, "invalid_adapter", str(error), param="path") from None
        if not await call.service.models.residency.grow(model.place):
            await model.engine.unload_adapter(body.name)
            raise ApiError(
                400,
                "memory_budget",
                f"with the adapter {model.name} would exceed the memory budget beside what is in use; "
                "unload others, or raise --memory-budget",
                param="path",
            )
    base = model.facts.bases.get(body.name)
    return json_response({"id": f"{model.name}:{body.name}", "object": "adapter", "digest": digest, "base": base})


async def unload(call: Call) -> Response:
    """Unload an adapter; requests that have it keep it to their end."""
    model, name = _base(call), call.path["name"]
    if name not in model.facts.adapters:
        raise not_found("adapter", f"{model.name}:{name}")
    await model.engine.unload_adapter(name)
    return json_response({"id": f"{model.name}:{name}", "object": "adapter", "deleted": True})


def _base(call: Call) -> Model:
    model = call.service.models.get(call.path["model"])
    if model.adapter is not None:
        raise ApiError(400, "invalid_value", f"{model.name!r} is an adapter already; name its base", param="model")
    return model
