"""The endpoints that generate: decode, admit, relay, in any dialect.

A client that leaves cancels its request wherever it is. One that comes back for its stream (``GET
/v1/streams/{id}``, at any gateway of the fleet) names the last event that it saw
(``Last-Event-ID``, which browsers send by themselves), and the answer continues after it.
"""

import time
from collections.abc import Mapping

import msgspec
from starlette.types import Receive, Scope, Send

from cortex.api.access import caller_of
from cortex.api.dialects.base import Call, Dialect
from cortex.api.dialects.cursor import UNNUMBERED, Seen, parse_event_id
from cortex.api.dialects.sse_writer import Head
from cortex.api.endpoints.relay import Relay
from cortex.api.http import (
    BodyReader,
    ClientGone,
    given_up_when_unread,
    send_error,
    watching_disconnect,
)
from cortex.dispatch.answer import AnswerStream, Choice, answered, taken_up
from cortex.gateway import Gateway
from cortex.telemetry.metrics import Outcome
from cortex.telemetry.request_record import Record
from protocol.errors import ErrorCode, FleetError
from protocol.job import Client


class Generation:
    """One dialect's ``POST`` endpoint, as an ASGI application."""

    def __init__(self, gateway: Gateway, bodies: BodyReader, dialect: Dialect) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request from decoding to its last byte."""
        metrics, send = self._gateway.metrics, given_up_when_unread(scope, send)
        records: list[Record] = []
        try:
            call = self._dialect.decode(await self._bodies.read(scope, receive))
            caller = caller_of(scope)
            client = self._client(call, caller.owner)
            async with answered(
                self._gateway.dispatcher,
                self._resolved(call),
                seed=call.seed,
                tenant=caller.tenant,
                client=client if call.stream else None,
                priority=call.priority,
            ) as answer:
                records += [stream.record for stream in answer.streams]
                for record in records:
                    metrics.began(record)
                outcome = await self._relay(answer, client, call.stream, receive, send)
        except ClientGone:
            outcome = Outcome.CANCELLED
        except FleetError as error:
            outcome = Outcome.of(error.error)
            await send_error(send, error.error, self._dialect.style)
        metrics.request(outcome, records)

    def _client(self, call: Call, owner: str) -> Client:
        return Client(
            dialect=self._dialect.name,
            owner=owner,
            created=int(time.time()),
            include_usage=call.include_usage,
            model=call.model,
            choices=len(call.choices),
            echo=msgspec.Raw(call.echo),
        )

    def _resolved(self, call: Call) -> list[Choice]:
        """Replaces aliases by model ids, and fills in the defaults of the models' profiles."""
        catalogue, known = self._gateway.catalogue, self._gateway.fleet
        asked = {id(c.request): c.request for c in call.choices}
        applied = {key: catalogue.applied(request, known) for key, request in asked.items()}
        return [c._replace(request=applied[id(c.request)]) for c in call.choices]

    async def _relay(
        self, answer: AnswerStream, client: Client, is_stream: bool, receive: Receive, send: Send
    ) -> Outcome:
        relay = Relay(answer, self._dialect.style, send)
        head = head_of(answer.id, client)
        async with watching_disconnect(receive, answer.close):
            if is_stream:
                return await relay.stream(self._dialect.writer(head, (), UNNUMBERED))
            return await relay.fold(self._dialect.folder(head))


class Streams:
    """``GET /v1/streams/{id}`` as an ASGI application."""

    def __init__(self, gateway: Gateway, dialects: Mapping[str, Dialect]) -> None:
        """Takes *dialects* by name: a stream continues in the one it began in."""
        self._gateway = gateway
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one client that came back for its stream."""
        metrics, send = self._gateway.metrics, given_up_when_unread(scope, send)
        records: list[Record] = []
        try:
            job_id = scope["path_params"]["job_id"]
            seen = _seen(scope, job_id)
            owner = caller_of(scope).owner
            async with taken_up(self._gateway.dispatcher, job_id, owner) as answer:
                records += [stream.record for stream in answer.streams]
                for record in records:
                    metrics.began(record)
                outcome = await self._relay(answer, seen, receive, send)
        except FleetError as error:
            outcome = Outcome.of(error.error)
            await send_error(send, error.error)
        metrics.request(outcome, records)

    async def _relay(
        self, answer: AnswerStream, seen: Seen, receive: Receive, send: Send
    ) -> Outcome:
        job = answer.streams[0].job
        client = job.client
        assert client is not None, "only streams can be claimed"
        dialect = self._dialects.get(client.dialect)
        if dialect is None:
            raise FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The stream uses the dialect {client.dialect!r}, which this version of the "
                "gateway does not know. Ask the gateway that began it.",
            )
        if seen.place and len(seen.place) != client.choices:
            raise _wrong(
                f"has {len(seen.place)} positions, but the answer has {client.choices} choices."
            )
        head = head_of(answer.id, client)._replace(model=client.model or job.request.model)
        async with watching_disconnect(receive, answer.close):
            writer = dialect.writer(head, seen.place, seen.number)
            return await Relay(answer, dialect.style, send).stream(writer)


def head_of(job_id: str, client: Client) -> Head:
    """Collects what the renderers say about an answer as a whole."""
    return Head(
        job_id,
        client.model,
        client.created,
        client.choices,
        client.include_usage,
        bytes(client.echo),
    )


def _seen(scope: Scope, job_id: str) -> Seen:
    value = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
    if not value:
        return Seen(job_id, ())
    try:
        seen = parse_event_id(value)
    except ValueError as error:
        raise FleetError(
            ErrorCode.INVALID_REQUEST, f"Last-Event-ID: {error}.", param="Last-Event-ID"
        ) from None
    if seen.job_id != job_id:
        raise _wrong(f"belongs to the stream {seen.job_id!r}, but {job_id!r} was requested.")
    return seen


def _wrong(what: str) -> FleetError:
    return FleetError(ErrorCode.INVALID_REQUEST, f"Last-Event-ID {what}", param="Last-Event-ID")
