"""Writes one stream to one client.

Headers go out when a neuron has accepted the request (so that errors about the prompt are proper
HTTP errors) or one second after admission, whichever is first; from then on the client sees bytes
every two seconds at least.
"""

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.types import Send

from cortex.api.http import (
    ClientGone,
    open_sse,
    request_id_header,
    send_chunk,
    send_error,
    send_json,
)
from cortex.api.openai_render import ChunkWriter, Folder, keep_alive
from cortex.metrics import Outcome
from cortex.receiver import Stream
from cortex.stream import Alive, Broken, Ended, Event, Parts, Started
from protocol.errors import ErrorCode, WireError

log = logging.getLogger("api")

HEADERS_AFTER_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0


class Relay:
    """One stream and its client."""

    def __init__(
        self, stream: Stream, send: Send, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._send = send
        self._clock = clock
        self._admitted = clock()
        self._headers_sent = False

    async def stream(self, writer: ChunkWriter) -> Outcome:
        """Sends the answer as it comes, until it is complete or broken, or the client has left."""
        return await self._guarded(self._run_streaming(writer))

    async def fold(self, folder: Folder) -> Outcome:
        """Sends the whole answer at its end."""
        return await self._guarded(self._run_folding(folder))

    async def _guarded(self, answer: Awaitable[Outcome]) -> Outcome:
        try:
            return await answer
        except ClientGone:
            log.warning("request %s: its client has stopped reading", self._stream.job.id)
            return Outcome.CANCELLED
        except Exception:
            log.exception("request %s", self._stream.job.id)
            error = WireError(ErrorCode.INTERNAL, "The gateway failed; its log has the details.")
            if self._headers_sent:
                await send_chunk(self._send, ChunkWriter.failure(error), more=False)
            else:
                await send_error(self._send, error, self._stream.job.id)
            return Outcome.FAILED

    async def _run_folding(self, folder: Folder) -> Outcome:
        job = self._stream.job
        while not self._stream.inbox.is_closed:
            for event in await self._stream.inbox.take(KEEP_ALIVE_SECONDS):
                match event:
                    case Parts():
                        folder.add(event.parts)
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

    async def _run_streaming(self, writer: ChunkWriter) -> Outcome:
        events = await self._before_headers()
        if events and isinstance(events[0], Broken):
            await send_error(self._send, events[0].error, self._stream.job.id)
            return Outcome.of(events[0].error)
        if self._stream.inbox.is_closed:
            return Outcome.CANCELLED
        self._headers_sent = True
        await open_sse(self._send, self._stream.job.id)
        await send_chunk(self._send, writer.opening())
        while not self._stream.inbox.is_closed:
            data, outcome = _render(writer, events)
            if outcome is not None:
                await send_chunk(self._send, data, more=False)
                return outcome
            if data or not events:
                await send_chunk(self._send, data or keep_alive(self._stream.waits_for))
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
    pieces: list[Parts] = []
    for event in events:
        match event:
            case Parts():
                pieces.append(event)
            case Ended():
                return writer.parts(pieces) + writer.ending(event), Outcome.FINISHED
            case Broken(error):
                return writer.parts(pieces) + writer.failure(error), Outcome.of(error)
            case Started() | Alive():
                pass
    return writer.parts(pieces), None
