"""Writes one answer to one client.

Headers go out when a neuron has accepted the request (so that errors about the prompt are proper
HTTP errors) or one second after admission, whichever comes first; from then on the client receives
bytes at least every two seconds.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

from starlette.types import Send

from cortex.api.dialects.pieces import blocks
from cortex.api.dialects.sse_writer import Aggregator, Writer
from cortex.api.error_responses import Style
from cortex.api.http import (
    ClientGone,
    open_json,
    open_sse,
    request_id_headers,
    send_chunk,
    send_error,
)
from cortex.dispatch import refusals
from cortex.dispatch.answer import AnswerStream
from cortex.streams.events import Alive, Broken, Ended, Event, Parts, Started
from cortex.telemetry.metrics import Outcome
from protocol.errors import WireError

log = logging.getLogger("api")

HEADERS_AFTER_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0
EVENTS_AT_ONCE = 500
"""How many events are rendered before others have their turn: with the most log-probabilities, that
takes 10 ms. After a client that reads slowly, 100,000 may have arrived."""
PIECES_AT_ONCE = 16
"""The same for the pieces of a whole answer, each of which may be the text of a choice."""

Arrived = list[tuple[int, list[Event]]]
"""Events, by the number of their choice."""


class Relay:
    """Relays one answer to its client."""

    def __init__(
        self,
        answer: AnswerStream,
        style: Style,
        send: Send,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._style = style
        self._send = send
        self._clock = clock
        self._admitted = clock()
        self._ended: dict[int, Ended] = {}
        self._headers_sent = False
        self._unrendered: Iterator[Arrived] = iter(())

    async def stream(self, writer: Writer) -> Outcome:
        """Sends the answer as it arrives, until it is complete or broken or the client has left."""
        return await self._guarded(self._run_streaming(writer), writer)

    async def fold(self, folder: Aggregator) -> Outcome:
        """Sends the whole answer once it is complete."""
        return await self._guarded(self._run_folding(folder), None)

    async def _guarded(self, answer: Awaitable[Outcome], writer: Writer | None) -> Outcome:
        try:
            return await answer
        except ClientGone:
            log.warning("request %s cancelled: its client stopped reading", self._answer.id)
            return Outcome.CANCELLED
        except Exception:
            log.exception("request %s", self._answer.id)
            error = refusals.gateway_failed()
            if writer is not None and self._headers_sent:
                await self._send_pieces(writer.failure(error), more=False)
            elif not self._headers_sent:
                await self._refuse(error)
            return Outcome.FAILED

    async def _refuse(self, error: WireError) -> None:
        self._headers_sent = True
        await send_error(self._send, error, self._style, self._answer.id)

    async def _run_folding(self, folder: Aggregator) -> Outcome:
        while not self._answer.is_closed:
            broken = self._fold_events(folder, await self._next_events(KEEP_ALIVE_SECONDS))
            if broken is not None:
                await self._refuse(broken.error)
                return Outcome.of(broken.error)
            if self._is_complete:
                pieces: list[bytes] = []
                for piece in folder.answer(self._in_order()):
                    pieces.append(piece)
                    if len(pieces) % PIECES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                headers = request_id_headers(self._answer.id)
                self._headers_sent = True
                await open_json(self._send, sum(map(len, pieces)), headers=headers)
                is_sent = await self._send_pieces(pieces, more=False)
                return Outcome.FINISHED if is_sent else Outcome.CANCELLED
        return Outcome.CANCELLED

    def _fold_events(self, folder: Aggregator, arrived: Arrived) -> Broken | None:
        """Adds events to the answer, up to one that breaks it."""
        for choice, events in arrived:
            for event in events:
                match event:
                    case Parts():
                        folder.add(choice, event.parts)
                    case Ended():
                        self._ended[choice] = event
                    case Broken():
                        return event
                    case Started() | Alive():
                        pass
        return None

    @property
    def _is_complete(self) -> bool:
        return len(self._ended) == len(self._answer.streams)

    def _in_order(self) -> list[Ended]:
        return [self._ended[choice] for choice in range(len(self._answer.streams))]

    async def _run_streaming(self, writer: Writer) -> Outcome:
        arrived = await self._before_headers()
        for broken in (event for _, events in arrived for event in events):
            if isinstance(broken, Broken):
                await self._refuse(broken.error)
                return Outcome.of(broken.error)
        if self._answer.is_closed:
            return Outcome.CANCELLED
        self._headers_sent = True
        await open_sse(self._send, self._answer.id)
        opening = writer.opening()
        self._unrendered = slices(arrived)
        data, outcome = self._render(writer, next(self._unrendered, []))
        if not arrived:  # tell the client first what its request waits for
            data = [writer.keep_alive(self._answer.waits_for)]
        data = opening + data
        while True:
            if outcome is not None:
                is_sent = await self._send_pieces(data, more=False)
                return outcome if is_sent else Outcome.CANCELLED
            await self._send_pieces(data or [writer.keep_alive(self._answer.waits_for)])
            data, outcome = await self._next_data(writer)
            if self._answer.is_closed:
                return Outcome.CANCELLED

    async def _before_headers(self) -> Arrived:
        """Collects events up to the first one that decides the status; returns none after a
        second."""
        arrived: Arrived = []
        while not arrived and not self._answer.is_closed:
            left = self._admitted + HEADERS_AFTER_SECONDS - self._clock()
            if left <= 0:
                break
            arrived = await self._answer.take(left)
        return arrived

    async def _send_pieces(self, pieces: Iterable[bytes], *, more: bool = True) -> bool:
        """Sends pieces of the body, and lets others have their turn after each large block. Stops
        when the client has left; returns whether all was sent."""
        waiting: bytes | None = None
        for block in blocks(pieces):
            if waiting is not None:
                await send_chunk(self._send, waiting)
                await asyncio.sleep(0)  # a fast client makes nobody wait
                if self._answer.is_closed:
                    return False
            waiting = block
        await send_chunk(self._send, waiting or b"", more=more)
        return True

    async def _next_events(self, timeout: float) -> Arrived:
        """Returns the next events to render; empty after *timeout* seconds without any."""
        some = next(self._unrendered, None)
        if some is not None:
            await asyncio.sleep(0)
            return some
        self._unrendered = slices(await self._answer.take(timeout))
        return next(self._unrendered, [])

    async def _next_data(self, writer: Writer) -> tuple[list[bytes], Outcome | None]:
        """Returns the next bytes worth writing; none when it is time for a keep-alive."""
        deadline = self._clock() + KEEP_ALIVE_SECONDS
        while not self._answer.is_closed:
            arrived = await self._next_events(max(0.0, deadline - self._clock()))
            data, outcome = self._render(writer, arrived)
            if data or outcome or self._clock() >= deadline:
                return data, outcome
        return [], None

    def _render(self, writer: Writer, arrived: Arrived) -> tuple[list[bytes], Outcome | None]:
        """Renders all events of one tick; also returns the outcome when the answer ends with
        them."""
        out: list[bytes] = []
        for choice, events in arrived:
            pieces: list[Parts] = []
            for event in events:
                match event:
                    case Parts():
                        pieces.append(event)
                    case Started():
                        out += writer.started(choice, event)
                    case Ended():
                        out += writer.parts(choice, pieces) + writer.ended(choice, event)
                        pieces, self._ended[choice] = [], event
                    case Broken(error):
                        out += writer.parts(choice, pieces) + writer.failure(error)
                        return out, Outcome.of(error)
                    case Alive():
                        pass
            out += writer.parts(choice, pieces)
        if self._is_complete:
            return out + writer.closing(self._in_order()), Outcome.FINISHED
        return out, None


def slices(arrived: Arrived, at_most: int = EVENTS_AT_ONCE) -> Iterator[Arrived]:
    """Cuts what has arrived into parts of at most so many events, in the same order."""
    some: Arrived = []
    room = at_most
    for choice, events in arrived:
        start = 0
        while start < len(events):
            taken = events[start : start + room]
            some.append((choice, taken))
            start += len(taken)
            room -= len(taken)
            if not room:
                yield some
                some, room = [], at_most
    if some:
        yield some
