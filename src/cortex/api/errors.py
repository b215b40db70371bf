"""Failures as HTTP: the one table from error codes to statuses, and OpenAI's envelope."""

from typing import NamedTuple

import msgspec

from protocol.errors import ErrorCode, WireError


class Http(NamedTuple):
    """How a code looks in OpenAI's dialect."""

    status: int
    type: str
    code: str


_TABLE = {
    ErrorCode.INVALID_REQUEST: Http(400, "invalid_request_error", "invalid_value"),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Http(
        400, "invalid_request_error", "context_length_exceeded"
    ),
    ErrorCode.REQUEST_TOO_LARGE: Http(413, "invalid_request_error", "request_too_large"),
    ErrorCode.MODEL_NOT_FOUND: Http(404, "invalid_request_error", "model_not_found"),
    ErrorCode.MODEL_UNAVAILABLE: Http(503, "server_error", "service_unavailable"),
    ErrorCode.OVERLOADED: Http(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorCode.TIMEOUT: Http(504, "server_error", "timeout"),
    ErrorCode.STREAM_LOST: Http(502, "server_error", "stream_lost"),
    ErrorCode.STREAM_GONE: Http(410, "invalid_request_error", "stream_gone"),
    ErrorCode.BUS_UNAVAILABLE: Http(503, "server_error", "service_unavailable"),
    ErrorCode.POISON: Http(500, "server_error", "poison"),
    ErrorCode.ENGINE_FAILED: Http(500, "server_error", "engine_failed"),
    ErrorCode.INTERNAL: Http(500, "server_error", "internal_error"),
}


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of OpenAI's error envelope; all four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """OpenAI's error envelope."""

    error: ErrorBody


def http_of(error: WireError) -> Http:
    """Status, type and code of an error."""
    return _TABLE[error.code]


def envelope(error: WireError) -> bytes:
    """An error as the JSON that OpenAI's clients read."""
    http = http_of(error)
    body = ErrorBody(error.message, http.type, error.param or None, http.code)
    return msgspec.json.encode(ErrorEnvelope(body))


def plain_envelope(message: str, code: str, type_: str = "invalid_request_error") -> bytes:
    """An error that only HTTP knows, such as an unknown path."""
    return msgspec.json.encode(ErrorEnvelope(ErrorBody(message, type_, None, code)))


def retry_headers(error: WireError) -> list[tuple[bytes, bytes]]:
    """``Retry-After`` where a retry can help."""
    if not error.retry_after_seconds:
        return []
    return [(b"retry-after", str(error.retry_after_seconds).encode())]
