"""Refusals in the shape that clients of OpenAI's protocol read: a status, and one message with its kind.

Knows the runtime's errors, and which of them are the request's fault. Knows nothing of HTTP beyond numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from phirt.errors import (
    BundleError,
    ClosedError,
    ConfigError,
    ContextError,
    MediaError,
    OutOfMemoryError,
    PhirtError,
    RequestCancelledError,
    SchemaError,
    out_of_memory,
)

logger = logging.getLogger("phirt.serve")

_MAX_MESSAGE = 500
_CODES: Mapping[type[PhirtError], str] = {
    ContextError: "context_length_exceeded",
    MediaError: "invalid_media",
    SchemaError: "invalid_schema",
}


class ApiError(PhirtError):
    """A request that is not answered: `status` and `code` tell programs why, the message people."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def document(self) -> dict[str, Any]:
        """The body of the refusal."""
        message = " ".join(str(self).split())
        if len(message) > _MAX_MESSAGE:
            message = message[: _MAX_MESSAGE - 1] + "…"
        return {
            "error": {"message": message, "type": _kind(self.status), "param": self.param, "code": self.code}
        }


class BadRequestError(ApiError):
    """What a client has written is none of what is accepted."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, code=code, param=param)


def as_api_error(error: BaseException) -> ApiError:
    """The refusal for what was raised while a request was answered."""
    if isinstance(error, ApiError):
        return error
    error = out_of_memory(error) or error
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "10"})
    if isinstance(error, ClosedError | RequestCancelledError):
        return stopping()
    # What a bundle cannot do, it cannot do for this request: take images, have tools in its template.
    if isinstance(error, BundleError | ConfigError | ContextError | MediaError | SchemaError):
        return BadRequestError(str(error), code=_CODES.get(type(error)))
    # Without its text, in which something of the request may stand.
    logger.error("a request failed: %s (PHIRT_DEBUG=1 shows where)", type(error).__name__, exc_info=error)
    return ApiError(500, "the server failed at this request, which is a fault in phirt; its log says where")


def stopping() -> ApiError:
    """The refusal for who asks while the server stops."""
    return ApiError(503, "the server is stopping; ask again when it runs", code="stopping")


def _kind(status: int) -> str:
    known = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
