"""Failures as HTTP: the one table from error codes to statuses, and each dialect's envelope."""

import re
from enum import Enum, auto
from typing import NamedTuple

import msgspec
from starlette.types import Scope

from protocol.errors import ErrorCode, WireError


class Style(Enum):
    """The client library that an error is written for."""

    OPENAI = auto()
    ANTHROPIC = auto()


def style_of(scope: Scope) -> Style:
    """Decides which clients a response is written for: by the path, and on paths that both kinds
    use, by the header that only one of them sends."""
    path = scope["path"].removeprefix("/anthropic")
    if path.startswith(("/v1/messages", "/messages")) or path != scope["path"]:
        return Style.ANTHROPIC
    is_shared = path.startswith("/v1/models") or scope.get("endpoint") is None
    names = {name for name, _ in scope["headers"]}
    is_theirs = b"anthropic-version" in names or (
        b"x-api-key" in names and b"authorization" not in names
    )
    return Style.ANTHROPIC if is_shared and is_theirs else Style.OPENAI


class Http(NamedTuple):
    """How one error code looks over HTTP."""

    status: int
    type: str
    code: str
    anthropic_type: str = ""
    """Anthropic's error type; empty means the same as ``type``."""
    anthropic_status: int = 0
    """Anthropic's status; 0 means the same as ``status``."""


_INVALID = "invalid_request_error"
_TABLE = {
    ErrorCode.INVALID_REQUEST: Http(400, _INVALID, "invalid_value"),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Http(400, _INVALID, "context_length_exceeded"),
    ErrorCode.REQUEST_TOO_LARGE: Http(413, _INVALID, "request_too_large", "request_too_large"),
    ErrorCode.BODY_TIMEOUT: Http(408, _INVALID, "request_timeout", "timeout_error"),
    ErrorCode.MODEL_NOT_FOUND: Http(404, _INVALID, "model_not_found", "not_found_error"),
    ErrorCode.MODEL_UNAVAILABLE: Http(
        503, "server_error", "service_unavailable", "overloaded_error", 529
    ),
    ErrorCode.OVERLOADED: Http(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorCode.TIMEOUT: Http(504, "server_error", "timeout", "timeout_error"),
    ErrorCode.STREAM_LOST: Http(502, "server_error", "stream_lost", "api_error"),
    ErrorCode.STREAM_GONE: Http(410, _INVALID, "stream_gone", "not_found_error"),
    ErrorCode.BUS_UNAVAILABLE: Http(
        503, "server_error", "service_unavailable", "overloaded_error", 529
    ),
    ErrorCode.POISON: Http(500, "server_error", "poison", "api_error"),
    ErrorCode.ENGINE_FAILED: Http(500, "server_error", "engine_failed", "api_error"),
    ErrorCode.INTERNAL: Http(500, "server_error", "internal_error", "api_error"),
}
_ANTHROPIC_TYPES = {"unknown_url": "not_found_error", "internal_error": "api_error"}
_OVERFLOW = re.compile(r"maximum context length is (\d+) tokens.*?resulted in (\d+) tokens")


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of OpenAI's error envelope; all four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """OpenAI's envelope around an error."""

    error: ErrorBody


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    """The inner object of Anthropic's error envelope."""

    type: str
    message: str


class AnthropicErrorEnvelope(msgspec.Struct, frozen=True):
    """Anthropic's envelope around an error."""

    error: AnthropicErrorBody
    request_id: str | None = None
    type: str = "error"


def http_of(error: WireError) -> Http:
    """Returns the status, type and code of an error."""
    return _TABLE[error.code]


def status_of(error: WireError, style: Style = Style.OPENAI) -> int:
    """Returns the HTTP status of an error."""
    http = _TABLE[error.code]
    return http.anthropic_status or http.status if style is Style.ANTHROPIC else http.status


def envelope(error: WireError, style: Style = Style.OPENAI, request_id: str = "") -> bytes:
    """Encodes an error as the JSON that the dialect's clients read."""
    http = _TABLE[error.code]
    if style is Style.ANTHROPIC:
        body = AnthropicErrorBody(http.anthropic_type or http.type, _anthropic_words(error))
        return msgspec.json.encode(AnthropicErrorEnvelope(body, request_id or None))
    return msgspec.json.encode(
        ErrorEnvelope(ErrorBody(error.message, http.type, error.param or None, http.code))
    )


def _anthropic_words(error: WireError) -> str:
    """Words an error so that Claude Code compacts the conversation: it reacts to this text only."""
    if error.code is not ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        return error.message
    found = _OVERFLOW.search(error.message)
    return f"prompt is too long: {found[2]} tokens > {found[1]} maximum" if found else error.message


def plain_envelope(
    message: str, code: str, type_: str = _INVALID, style: Style = Style.OPENAI
) -> bytes:
    """Encodes an error that exists only in HTTP, such as an unknown path."""
    if style is Style.ANTHROPIC:
        anthropic_type = _ANTHROPIC_TYPES.get(code, type_)
        return msgspec.json.encode(
            AnthropicErrorEnvelope(AnthropicErrorBody(anthropic_type, message))
        )
    return msgspec.json.encode(ErrorEnvelope(ErrorBody(message, type_, None, code)))


def retry_headers(error: WireError) -> list[tuple[bytes, bytes]]:
    """Returns a ``Retry-After`` header where a retry can help."""
    if not error.retry_after_seconds:
        return []
    return [(b"retry-after", str(error.retry_after_seconds).encode())]
