"""Every metric of the gateway, in one place; served on its own port.

Names use base units; labels never hold request ids.
"""

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from protocol.errors import ErrorCode, WireError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Outcome(StrEnum):
    """How a request ended, for counting."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    """The client left."""
    REFUSED = "refused"
    """The request itself was at fault."""
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    """No node could serve it in time."""
    FAILED = "failed"

    @classmethod
    def of(cls, error: WireError) -> "Outcome":
        """The outcome of a request that ended with *error*."""
        match error.code:
            case (
                ErrorCode.INVALID_REQUEST
                | ErrorCode.CONTEXT_LENGTH_EXCEEDED
                | ErrorCode.REQUEST_TOO_LARGE
                | ErrorCode.MODEL_NOT_FOUND
            ):
                return cls.REFUSED
            case ErrorCode.OVERLOADED:
                return cls.OVERLOADED
            case ErrorCode.MODEL_UNAVAILABLE | ErrorCode.TIMEOUT | ErrorCode.BUS_UNAVAILABLE:
                return cls.UNAVAILABLE
            case _:
                return cls.FAILED


class Metrics:
    """The gateway's registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cortex_requests", "Requests by outcome.", ["outcome"], registry=self._registry
        )
        for outcome in Outcome:
            self._requests.labels(outcome)  # a counter that appears late looks like a jump

    def request(self, outcome: Outcome) -> None:
        """A request ended."""
        self._requests.labels(outcome).inc()

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A value that is read when Prometheus asks."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return bytes(generate_latest(self._registry))
