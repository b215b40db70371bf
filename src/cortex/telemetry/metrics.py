"""The metrics of the gateway, served on its own port; ``cortex.gateway`` sets the gauges that show
its own state.

Names use base units; labels never hold request ids.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily

from cortex.telemetry.histograms import Histogram
from cortex.telemetry.history import History
from cortex.telemetry.request_record import GAP_BOUNDS, Continuity, Record
from protocol.errors import ErrorCode, WireError

log = logging.getLogger("request")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Outcome(StrEnum):
    """How a request ended, as the metrics count it."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    """The client left before the end."""
    REFUSED = "refused"
    """The request itself was at fault."""
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    """No node could serve it in time."""
    FAILED = "failed"

    @classmethod
    def of(cls, error: WireError) -> "Outcome":
        """Returns the outcome of a request that ended with *error*."""
        match error.code:
            case (
                ErrorCode.INVALID_REQUEST
                | ErrorCode.CONTEXT_LENGTH_EXCEEDED
                | ErrorCode.REQUEST_TOO_LARGE
                | ErrorCode.BODY_TIMEOUT
                | ErrorCode.MODEL_NOT_FOUND
                | ErrorCode.STREAM_GONE
            ):
                return cls.REFUSED
            case ErrorCode.OVERLOADED:
                return cls.OVERLOADED
            case ErrorCode.MODEL_UNAVAILABLE | ErrorCode.TIMEOUT | ErrorCode.BUS_UNAVAILABLE:
                return cls.UNAVAILABLE
            case _:
                return cls.FAILED


_OFFERS = {True: "taken", False: "refused"}
_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class _CountsOf:
    """Counts that are read when Prometheus asks."""

    def __init__(
        self, name: str, help_text: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        self._name, self._help, self._label, self._read = name, help_text, label, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yields the one metric family."""
        family = CounterMetricFamily(self._name, self._help, labels=[self._label])
        for key, count in self._read().items():
            family.add_metric([key], count)
        yield family


class Metrics:
    """The gateway's registry of metrics."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cortex_requests", "Requests by outcome.", ["outcome"], registry=self._registry
        )
        for outcome in Outcome:
            self._requests.labels(outcome)  # a counter that first appears late looks like a jump
        self._tokens = Counter(
            "cortex_tokens", "Tokens by kind.", ["model", "kind"], registry=self._registry
        )
        self._moves = Counter(
            "cortex_moves",
            "Times that a stream was moved away from a neuron.",
            registry=self._registry,
        )
        self._moved = Counter(
            "cortex_moved_requests",
            "Finished answers that moved: bit-identical, or only continued.",
            ["continuity"],
            registry=self._registry,
        )
        for continuity in (Continuity.EXACT, Continuity.CONTINUED):
            self._moved.labels(continuity)
        self._offers = Counter(
            "cortex_prefix_offers",
            "Requests offered to the node that has computed their prompt's prefix.",
            ["outcome"],
            registry=self._registry,
        )
        for answer in _OFFERS.values():
            self._offers.labels(answer)
        self._queue = self._histogram("cortex_queue_seconds", "Seconds in the queue.", _LATENCY)
        self._first = self._histogram(
            "cortex_first_token_seconds", "Seconds from admission to the first token.", _LATENCY
        )
        self._between = self._histogram(
            "cortex_inter_token_seconds", "Seconds between two tokens of a stream.", GAP_BOUNDS
        )
        self._whole = self._histogram(
            "cortex_request_seconds", "Seconds from admission to the end.", _LATENCY
        )

        self._holds = Counter(
            "cortex_event_loop_holds",
            "Times that something held the event loop for more than 50 ms.",
            registry=self._registry,
        )
        self._held = Counter(
            "cortex_event_loop_held_seconds",
            "Seconds for which something held the event loop for more than 50 ms.",
            registry=self._registry,
        )

    def loop_held(self, seconds: float) -> None:
        """Counts that something held the event loop for *seconds*."""
        self._holds.inc()
        self._held.inc(seconds)

    def began(self, record: Record) -> None:
        """Records that a request was admitted."""
        self._history.began(record)

    def request(self, outcome: Outcome, records: Iterable[Record] = ()) -> None:
        """Counts a request that ended, with the *records* of its choices; it has none if it was
        refused before admission."""
        self._requests.labels(outcome).inc()
        for record in records:
            self._choice(outcome, record)

    def _choice(self, outcome: Outcome, record: Record) -> None:
        log.info("%s", record.line(outcome))
        self._history.ended(record, outcome)
        model = record.model
        self._moves.inc(record.moves)
        if record.was_near is not None:
            self._offers.labels(_OFFERS[record.was_near]).inc()
        self._whole.of(model).add(record.seconds)
        if record.queue_seconds is not None:
            self._queue.of(model).add(record.queue_seconds)
        if record.first_token_seconds is not None:
            self._first.of(model).add(record.first_token_seconds)
        self._between.of(model).merge(record.gaps)
        self._count_tokens(record)
        if outcome is Outcome.FINISHED and record.continuity is not Continuity.UNDISTURBED:
            self._moved.labels(record.continuity).inc()

    def _count_tokens(self, record: Record) -> None:
        usage = record.usage
        counts = {"prompt": record.prompt_tokens, "completion": record.tokens}
        if usage is not None:
            counts |= {"cached": usage.cached_tokens, "reasoning": usage.reasoning_tokens}
        for kind, count in counts.items():
            self._tokens.labels(record.model, kind).inc(count)

    def _histogram(self, name: str, help_text: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, help_text, bounds)
        self._registry.register(histogram)
        return histogram

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when Prometheus scrapes."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def counter(
        self, name: str, help_text: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """Exports counts that are kept elsewhere: one series for each key that *read* returns."""
        self._registry.register(_CountsOf(name, help_text, label, read))

    def exposition(self) -> bytes:
        """Renders the text that Prometheus scrapes."""
        return bytes(generate_latest(self._registry))
