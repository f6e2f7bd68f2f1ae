"""Errors as OpenAI writes them: `{"error": {message, type, param, code}}` with the HTTP status its clients expect."""

from __future__ import annotations

from typing import Any

__all__ = ["ApiError", "bad_request", "engine_lost", "too_busy"]


class ApiError(Exception):
    """What a client is told. status: HTTP; kind: OpenAI's `type`; param: the field at fault; code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is at fault, and the sentence says what to change."""
    return ApiError(400, message, param=param, code=code)


def too_busy(message: str) -> ApiError:
    """429: the same request can succeed later."""
    return ApiError(429, message, "rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"})


def engine_lost(reason: str) -> ApiError:
    """503: the engine's process is gone, and so are the requests that it had."""
    return ApiError(
        503, f"the engine has stopped ({reason}); restart the server", "server_error", code="engine_stopped"
    )
