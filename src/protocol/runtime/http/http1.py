"""HTTP/1 as it is spoken here: Hypercorn's, which goes on reading while an answer is under way.

The parser is h11. What it may not parse yet, because it comes behind a request that is being
answered, waits in it up to a bound; what is beyond that is thrown away, and the connection ends
with the answer. So a client that leaves is noticed whatever it has sent.
"""

import asyncio
import contextlib
from typing import Any

import h11
from h11._state import MIGHT_SWITCH_PROTOCOL
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from protocol.runtime.http import h11_patterns

h11_patterns.install()

MAX_AHEAD_BYTES = 64 << 10
"""How much may come behind a request that is being answered, and is kept as the next ones."""
AHEAD_SECONDS = 0.25
"""How long to wait for the end of an answer when more than that has come."""
_START = b"HTTP/1.1 "
_COMPLETE = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, MIGHT_SWITCH_PROTOCOL)
_NOT_SPOKEN = (
    "This server speaks HTTP/1.1 and HTTP/1.0, but the request asks for HTTP/{}. Send it as "
    "HTTP/1.1; a gateway speaks HTTP/2 with http2 = true in its settings."
)
_TWO_LENGTHS = (
    "The request has both Content-Length and Transfer-Encoding, so that it is not certain where it "
    "ends. Send one of them."
)
_INVALID = "The request is not valid HTTP/1.1: {}."


class Http1(H11Protocol):
    """Hypercorn's side of HTTP/1, which goes on reading while an answer is under way."""

    connection: h11.Connection

    def __init__(self, of: ProtocolWrapper, *, allows_http2: bool) -> None:
        super().__init__(
            of.app,
            of.config,
            of.context,
            of.task_group,
            of.state,
            of.ssl,
            of.client,
            of.server,
            of.send,
        )
        self._allows_http2 = allows_http2
        self._turn = asyncio.Lock()
        self._is_head = False
        self._is_chunked = False
        self._is_deaf = False
        """Whether what the client sends is thrown away, because it was too much."""

    @property
    def is_answering(self) -> bool:
        """Whether a whole request has come that has not been answered to its end."""
        return self.stream is not None and self.connection.their_state in _COMPLETE

    def byte_ahead(self, sent: int) -> tuple[bytes, int]:
        """Returns a byte that changes nothing for a client that reads, and that tells the machine
        of one that does not to reset the connection; and how many bytes of the next answer's
        beginning it is. Empty where there is no such byte.

        *sent* bytes of that beginning have been sent before: every answer begins with ``HTTP/1.1
        ``. Later, the length of the next chunk may begin with a zero.
        """
        state = self.connection.our_state
        if state is h11.SEND_RESPONSE:
            byte = _START[sent : sent + 1]
            return byte, len(byte)
        if state is h11.SEND_BODY and self._is_chunked:
            return b"0", 0
        return b"", 0

    async def handle(self, event: Event) -> None:
        """Handles what has come from the client."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        with contextlib.suppress(TimeoutError):
            while self._is_too_much(event.data):
                # A client that has its whole answer may be quicker than the application's end.
                await self.can_read.clear()
                async with asyncio.timeout(AHEAD_SECONDS):
                    await self.can_read.wait()
        async with self._turn:
            self._keep(event.data)
            await self._handle_events()

    def _is_too_much(self, data: bytes) -> bool:
        if not self._keeps_next:
            return False
        return len(self.connection.trailing_data[0]) + len(data) > MAX_AHEAD_BYTES

    @property
    def _keeps_next(self) -> bool:
        """Whether what comes now is the beginning of a request that will be answered."""
        is_last = self.connection.their_state in (h11.MUST_CLOSE, h11.CLOSED)
        return self.is_answering and not (is_last or self._is_deaf)

    def _keep(self, data: bytes) -> None:
        """Gives the parser what it can use, now or later."""
        if self._is_too_much(data):
            self._is_deaf = True
            self.keep_alive_requests = self.config.keep_alive_max_requests  # tells the client
        if data and self.is_answering and not self._keeps_next:
            return
        if data[:1] in (b"\r", b"\n") and self._is_between_requests:
            data = data.lstrip(b"\r\n")  # some clients send an empty line behind a body
            if not data:
                return
        self.connection.receive_data(data)

    @property
    def _is_between_requests(self) -> bool:
        is_between = self.is_answering or self.connection.their_state is h11.IDLE
        return is_between and not self.connection.trailing_data[0]

    async def _handle_events(self) -> None:
        while not self.is_answering:  # until then, what has come behind the request waits
            if self.connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(
                    h11.InformationalResponse(
                        status_code=100, headers=self.config.response_headers("h11")
                    )
                )
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                what, _, _ = str(error).partition(":")  # behind it is what the client sent
                await self._refuse(error.error_status_hint, _INVALID.format(what))
                return
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                if await self._is_refused(event):
                    return
                await self._check_protocol(event)
                await self._create_stream(event)
            elif isinstance(event, h11.ConnectionClosed) and self.stream is None:
                await self.send(Closed())
                return
            elif self.stream is not None and isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            elif self.stream is not None and isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:  # nothing more to read now
                return

    async def _is_refused(self, request: h11.Request) -> bool:
        names = {name for name, _ in request.headers}
        is_http2 = request.method == b"PRI" and self._allows_http2 and not self.keep_alive_requests
        if request.http_version not in (b"1.0", b"1.1") and not is_http2:
            await self._refuse(505, _NOT_SPOKEN.format(request.http_version.decode()))
        elif {b"content-length", b"transfer-encoding"} <= names:
            await self._refuse(400, _TWO_LENGTHS)
        else:
            return False
        return True

    async def _check_protocol(self, event: h11.Request) -> None:
        if self._allows_http2 and not self.keep_alive_requests:
            await super()._check_protocol(event)

    async def _create_stream(self, request: h11.Request) -> None:
        self._is_head = request.method.upper() == b"HEAD"
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _refuse(self, status: int, message: str) -> None:
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = message.encode() + b"\n"
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            headers += self.config.response_headers("h11")
            await self._send_h11_event(h11.Response(status_code=status, headers=headers))
            await self._send_h11_event(h11.Data(data=body))
            await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    async def _send_h11_event(self, event: Any) -> None:
        if isinstance(event, h11.Response):
            has_length = any(name == b"content-length" for name, _ in event.headers)
            has_body = not (self._is_head or event.status_code in (204, 304))
            is_new = self.connection.their_http_version == b"1.1"
            self._is_chunked = has_body and is_new and not has_length
        await super()._send_h11_event(event)

    async def _maybe_recycle(self) -> None:
        if self._is_deaf:
            await self._close_stream()
            await self.send(Closed())
            return
        await super()._maybe_recycle()
        data, is_end = self.connection.trailing_data
        if self.connection.our_state is not h11.IDLE or not (data or is_end):
            return
        if data[:1] in (b"\r", b"\n"):  # an empty line behind the body, as in _keep
            size = self.config.h11_max_incomplete_size
            self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=size)
            if data := data.lstrip(b"\r\n"):
                self.connection.receive_data(data)
            if is_end:
                self.connection.receive_data(b"")
        self.task_group.spawn(self._go_on)

    async def _go_on(self) -> None:
        """Handles what has come behind the last request."""
        async with self._turn:
            await self._handle_events()
