"""The OpenAPI description, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from vitral.serve.build import version
from vitral.serve.call import Route

__all__ = ["describe"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    "4XX": "The request must be put right; the error names what.",
    "429": "More work than the server takes on; Retry-After says when to come back.",
    "503": "The server cannot do it now; Retry-After says when to come back.",
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    bodies = list({route.body for route in routes if isinstance(route.body, type)})
    _, definitions = models_json_schema(
        [(body, "validation") for body in sorted(bodies, key=lambda body: body.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vitral", "version": version()},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub('[^a-z0-9]+', '_', path.lower())}",
        "security": [] if route.permission == "public" else [{"key": []}],
        "x-permission": route.permission,
        "x-scanned": list(route.scanned),
        "x-recorded": route.recorded,
        "responses": {"200": {"description": "The answer."}}
        | {
            status: {
                "description": text,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
            for status, text in _STATUSES.items()
        },
    }
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    asked = route.query.model_json_schema()["properties"] if route.query.model_fields else {}
    if asked:
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in asked.items()
        )
    if isinstance(route.body, type):
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
