"""``POST /v1/chat/completions``: decode, admit, relay.

Headers go out when a neuron has accepted the request (so that errors about the prompt are proper
HTTP errors) or one second after admission, whichever is first; from then on the client sees bytes
every two seconds at least. A client that leaves cancels its request wherever it is.
"""

import logging
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from cortex.api.http import (
    ClientGone,
    open_sse,
    read_body,
    request_id_header,
    send_chunk,
    send_error,
    send_json,
    watching_disconnect,
)
from cortex.api.openai_decode import ChatCall, decode_chat
from cortex.api.openai_render import KEEP_ALIVE, ChunkWriter, Folder
from cortex.dispatch import Dispatcher
from cortex.metrics import Metrics, Outcome
from cortex.receiver import Stream
from cortex.stream import Alive, Broken, Ended, Event, Parts, Started
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.frames import Part

log = logging.getLogger("api")

HEADERS_AFTER_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0


class ChatCompletions:
    """The endpoint as an ASGI application."""

    def __init__(
        self, dispatcher: Dispatcher, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        try:
            call = decode_chat(await read_body(receive))
            async with self._dispatcher.stream(call.generate, seed=call.seed) as stream:
                relay = _Relay(call, stream, send, self._clock)
                async with watching_disconnect(receive, stream.inbox.close):
                    outcome = await relay.run()
        except ClientGone:
            outcome = Outcome.CANCELLED
        except FleetError as error:
            outcome = Outcome.of(error.error)
            await send_error(send, error.error)
        self._metrics.request(outcome)


class _Relay:
    """Writes one stream to one client."""

    def __init__(
        self, call: ChatCall, stream: Stream, send: Send, clock: Callable[[], float]
    ) -> None:
        self._call = call
        self._stream = stream
        self._send = send
        self._clock = clock
        self._admitted = clock()
        self._headers_sent = False

    async def run(self) -> Outcome:
        """Until the answer is complete or broken, or the client has left."""
        try:
            if self._call.stream:
                return await self._run_streaming()
            return await self._run_folding()
        except Exception:
            log.exception("request %s", self._stream.job.id)
            await self._fail(
                WireError(ErrorCode.INTERNAL, "The gateway failed; its log has the details.")
            )
            return Outcome.FAILED

    async def _fail(self, error: WireError) -> None:
        if self._headers_sent:
            await send_chunk(self._send, ChunkWriter.failure(error), more=False)
        else:
            await send_error(self._send, error, self._stream.job.id)

    async def _run_folding(self) -> Outcome:
        job = self._stream.job
        folder = Folder(job.id, self._call.generate.model, int(time.time()))
        while not self._stream.inbox.is_closed:
            for event in await self._stream.inbox.take(KEEP_ALIVE_SECONDS):
                match event:
                    case Parts(parts, _):
                        folder.add(parts)
                    case Ended():
                        headers = request_id_header(job.id)
                        await send_json(self._send, folder.answer(event), headers=headers)
                        return Outcome.FINISHED
                    case Broken(error):
                        await send_error(self._send, error, job.id)
                        return Outcome.of(error)
                    case Started() | Alive():
                        pass
        return Outcome.CANCELLED

    async def _run_streaming(self) -> Outcome:
        first = await self._before_headers()
        if first and isinstance(first[0], Broken):
            await send_error(self._send, first[0].error, self._stream.job.id)
            return Outcome.of(first[0].error)
        if self._stream.inbox.is_closed:
            return Outcome.CANCELLED
        job = self._stream.job
        writer = ChunkWriter(
            job.id, self._call.generate.model, int(time.time()), self._call.include_usage
        )
        self._headers_sent = True
        await open_sse(self._send, job.id)
        await send_chunk(self._send, writer.opening())
        events = first
        while not self._stream.inbox.is_closed:
            data, outcome = _render(writer, events)
            if outcome is not None:
                await send_chunk(self._send, data, more=False)
                return outcome
            if data or not events:
                await send_chunk(self._send, data or KEEP_ALIVE)
            events = await self._take_for_keep_alive()
        return Outcome.CANCELLED

    async def _before_headers(self) -> list[Event]:
        """Events up to the first that decides the status, or none after a second."""
        events: list[Event] = []
        while not events and not self._stream.inbox.is_closed:
            left = self._admitted + HEADERS_AFTER_SECONDS - self._clock()
            if left <= 0:
                break
            events = await self._stream.inbox.take(left)
        return events

    async def _take_for_keep_alive(self) -> list[Event]:
        """Events worth writing; an empty list when it is time for a keep-alive."""
        deadline = self._clock() + KEEP_ALIVE_SECONDS
        while not self._stream.inbox.is_closed:
            events = await self._stream.inbox.take(max(0.0, deadline - self._clock()))
            worth: list[Event] = [
                event for event in events if not isinstance(event, Alive | Started)
            ]
            if worth or self._clock() >= deadline:
                return worth
        return []


def _render(writer: ChunkWriter, events: list[Event]) -> tuple[bytes, Outcome | None]:
    """The bytes of all events of one tick, and the outcome when one of them is the end."""
    data: list[bytes] = []
    pending: list[Part] = []
    for event in events:
        match event:
            case Parts(parts, _):
                pending.extend(parts)
            case Ended():
                data += [writer.parts(pending), writer.ending(event)]
                return b"".join(data), Outcome.FINISHED
            case Broken(error):
                data += [writer.parts(pending), writer.failure(error)]
                return b"".join(data), Outcome.of(error)
            case Started() | Alive():
                pass
    data.append(writer.parts(pending))
    return b"".join(data), None
