"""``GET /v1/streams/{id}``: take a stream up again, at any gateway of the fleet.

For a client whose gateway died or whose connection broke: it names the last event that it saw
(``Last-Event-ID``, as browsers do by themselves), and the answer goes on after it.
"""

from starlette.types import Receive, Scope, Send

from cortex.api.access import caller_of
from cortex.api.cursor import START, Cursor, parse_event_id
from cortex.api.http import send_error, watching_disconnect
from cortex.api.openai_render import ChunkWriter
from cortex.api.relay import Relay
from cortex.dispatch import Dispatcher
from cortex.metrics import Metrics, Outcome
from cortex.record import Record
from protocol.errors import ErrorCode, FleetError


class Streams:
    """The endpoint as an ASGI application."""

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one client that comes back."""
        record: Record | None = None
        try:
            job_id = scope["path_params"]["job_id"]
            seen = _seen(scope, job_id)
            async with self._dispatcher.take_up(job_id, caller_of(scope).owner) as stream:
                record = stream.record
                self._metrics.began(record)
                job, client = stream.job, stream.job.client
                assert client is not None, "only streams are handed over"
                model = client.model or job.request.model
                writer = ChunkWriter(job.id, model, client.created, client.include_usage, seen)
                async with watching_disconnect(receive, stream.inbox.close):
                    outcome = await Relay(stream, send).stream(writer)
        except FleetError as error:
            outcome = Outcome.of(error.error)
            await send_error(send, error.error)
        self._metrics.request(outcome, record)


def _seen(scope: Scope, job_id: str) -> Cursor:
    value = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
    if not value:
        return START
    try:
        named, seen = parse_event_id(value)
    except ValueError as error:
        raise FleetError(
            ErrorCode.INVALID_REQUEST, f"Last-Event-ID: {error}.", param="Last-Event-ID"
        ) from None
    if named != job_id:
        raise FleetError(
            ErrorCode.INVALID_REQUEST,
            f"Last-Event-ID is of the stream {named!r}, but {job_id!r} was asked for.",
            param="Last-Event-ID",
        )
    return seen
