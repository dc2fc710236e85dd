"""What goes wrong, in the shapes that clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vitral.errors import (
    ContextOverflow,
    EngineLost,
    ModelNotFound,
    NumericalError,
    Overloaded,
    RecordStoreError,
    RequestError,
    ServiceError,
    ShuttingDown,
    TokenizerError,
    VitralError,
)

__all__ = ["ApiError", "Dialect", "error_body", "not_found", "to_api"]

Dialect = Literal["openai", "anthropic"]

_CODES: tuple[tuple[type[VitralError], int, str], ...] = (
    (ContextOverflow, 400, "context_length_exceeded"),
    (ModelNotFound, 404, "model_not_found"),
    (RequestError, 400, "invalid_value"),
    (TokenizerError, 400, "invalid_value"),
    (Overloaded, 429, "overloaded"),
    (EngineLost, 503, "engine_lost"),
    (ShuttingDown, 503, "server_shutdown"),
    (RecordStoreError, 503, "record_store_unavailable"),
    (ServiceError, 503, "unavailable"),
    (NumericalError, 500, "not_a_number"),
)
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(VitralError):
    """An answer that is an error: HTTP status, code, and the parameter that is to be put right."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's kind of error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


def not_found(what: str, id: str) -> ApiError:
    """Also for what belongs to somebody else: the answer is the same."""
    return ApiError(404, "not_found", f"there is no {what} {id!r}; it may have been deleted")


def to_api(error: Exception) -> ApiError:
    """Any of our errors as an answer; what is none of ours says nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            wait = str(error.retry_after_s) if isinstance(error, Overloaded) else "2" if status == 503 else None
            return ApiError(status, code, str(error), headers={"Retry-After": wait} if wait else None)
    if isinstance(error, VitralError):
        return ApiError(500, "internal_error", str(error))
    return ApiError(500, "internal_error", "the server failed at this request; its log says how")


def error_body(error: ApiError, dialect: Dialect) -> dict[str, Any]:
    """The JSON of an error."""
    if dialect == "anthropic":
        kind = _ANTHROPIC.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}
