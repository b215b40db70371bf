"""Errors that cross process boundaries: one code for machines, three sentences for people.

Every failure that a client or operator can see is a :class:`WireError`: what happened, why (with
the numbers), what to do. The gateway maps codes to HTTP statuses in one table
(``cortex.api.error_responses``); what can go wrong only in HTTP, such as an unknown path, is worded
where it is found.
"""

from enum import StrEnum
from typing import Self

import msgspec

MAX_MESSAGE = 2_000
"""Characters of a message. What is longer repeats what somebody has sent."""
MAX_PARAM = 200


class ErrorCode(StrEnum):
    """What went wrong, as programs read it."""

    INVALID_REQUEST = "invalid_request"
    """The request itself is wrong: syntax, type, range, template."""
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    """The prompt does not fit in the model's context."""
    REQUEST_TOO_LARGE = "request_too_large"
    """The body or the job is larger than the gateway or the bus accepts."""
    BODY_TIMEOUT = "body_timeout"
    """The request's body did not arrive in time."""
    MODEL_NOT_FOUND = "model_not_found"
    """No node of the fleet knows this model."""
    MODEL_UNAVAILABLE = "model_unavailable"
    """The model is known, but no node can serve it now."""
    OVERLOADED = "overloaded"
    """A bounded queue is full."""
    TIMEOUT = "timeout"
    """A deadline passed before work began, or while it made no progress."""
    STREAM_LOST = "stream_lost"
    """The neuron that ran the request is gone, or its frames have a gap."""
    STREAM_GONE = "stream_gone"
    """No neuron has the stream that a client wants to claim: it never existed, or ended long
    ago."""
    BUS_UNAVAILABLE = "bus_unavailable"
    """The gateway has no connection to NATS."""
    POISON = "poison"
    """The request was delivered several times, and no neuron survived or accepted it."""
    ENGINE_FAILED = "engine_failed"
    """The engine process died or cannot continue."""
    INTERNAL = "internal"
    """A bug; the log has the details under the request's id."""


class WireError(msgspec.Struct, frozen=True, omit_defaults=True):
    """A failure as it travels on the bus and into every API dialect."""

    code: ErrorCode
    message: str
    retry_after_seconds: int = 0
    """Seconds after which a retry may help; 0 makes no such promise."""
    param: str = ""
    """The request field at fault, for ``INVALID_REQUEST``."""


class FleetError(Exception):
    """Raised inside a program for a failure that has a :class:`WireError`."""

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_seconds: int = 0, param: str = ""
    ) -> None:
        message = shortened(message, MAX_MESSAGE)
        super().__init__(message)
        self.error = WireError(code, message, retry_after_seconds, shortened(param, MAX_PARAM))

    @classmethod
    def of(cls, error: WireError) -> Self:
        """Wraps an error that arrived from another process."""
        return cls(
            error.code,
            error.message,
            retry_after_seconds=error.retry_after_seconds,
            param=error.param,
        )


def shortened(text: str, limit: int) -> str:
    """Returns *text*, without its middle if it has more than *limit* characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … {text[-half:]}"


def first_of(error: BaseException, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """Returns *error* itself, or the first one inside an exception group, that is one of
    *kinds*."""
    if isinstance(error, kinds):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, (first_of(e, kinds) for e in error.exceptions)), None)
    return None
