"""What stands after the `?` of an address: checked like a body. And lists, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitral.serve.faults import ApiError

__all__ = ["Beta", "FilesQuery", "ListQuery", "Query", "asked", "page"]


class Query(BaseModel):
    """Parameters of an address. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class Beta(Query):
    """Anthropic's client says it of routes in `client.beta`; they do the same here."""

    beta: Literal["true", "false"] | None = None


class ListQuery(Query):
    """Which part of a list: at most `limit` entries behind the one whose id is `after`, newest or oldest first."""

    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    after: Annotated[str, Field(max_length=64)] | None = None
    order: Literal["asc", "desc"] = "desc"


class FilesQuery(ListQuery):
    """Files of one purpose alone."""

    purpose: Annotated[str, Field(max_length=64)] | None = None


Q = TypeVar("Q", bound=Query)


def asked(query: type[Q], given: Iterable[tuple[str, str]]) -> Q:
    """The parameters, checked; ApiError 400 names the first that is wrong.

    >>> asked(ListQuery, [("limit", "3")]).limit
    3
    """
    values: dict[str, str] = {}
    for name, value in given:
        if name in values:
            raise ApiError(400, "duplicate_key", f"{name[:80]!r} stands twice in the address; send it once", param=name)
        values[name] = value
    try:
        return query.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])[:80]
        if first["type"] == "extra_forbidden":
            known = ", ".join(query.model_fields) or "none"
            why = f"{name!r} is no parameter of this address; allowed: {known}"
            raise ApiError(400, "unknown_parameter", why, param=name) from None
        found = str(first["input"])[:80]
        raise ApiError(400, "invalid_value", f"{name}: {first['msg']} (found {found!r})", param=name) from None


def page(newest_first: Sequence[dict[str, Any]], query: ListQuery) -> dict[str, Any]:
    """One page as clients know it. ApiError 400 for an `after` that is not in the list."""
    entries = newest_first if query.order == "desc" else newest_first[::-1]
    start = 0
    if query.after is not None:
        ids = [entry["id"] for entry in entries]
        if query.after not in ids:
            raise ApiError(400, "invalid_value", f"after is {query.after!r}, which this list has not", param="after")
        start = ids.index(query.after) + 1
    data = list(entries[start : start + query.limit])
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": start + len(data) < len(entries)}
