"""One connection of the HTTP server: Hypercorn's, with another end.

Hypercorn reads, parses and writes. What is different here:

- The connection is read on while an answer is under way, so that a client that leaves is noticed
  whatever it has sent behind its request.
- A client that has closed only its sending half gets its answer. Whether it is still there is found
  out by sending it a byte that it will get in any case (see ``Http1.byte_ahead``).
- HTTP/2 is spoken only where it was asked for, and WebSockets are not spoken at all.
- What an application has not yet received is bounded in bytes, and nobody waits for an application
  that has ended.
- A client that reads nothing of what it is sent is cut off; one that reads slowly is not.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from protocol.runtime.http.hang_ups import HangUps
from protocol.runtime.http.http1 import Http1
from protocol.runtime.http.inbox import ConnectionTasks
from protocol.runtime.http.unread import given_up_when_unread, unread_bytes

MAX_READ_BYTES = 32 << 10
"""How much is read from a connection before the others have their turn. asyncio would read eight
times as much, and keep it for every connection of a crowd."""
FIRST_PAUSE_SECONDS = 1.0
"""Between the first two bytes that ask whether a half-closed client is still there; each following
pause is twice as long."""
UNREAD_SECONDS = 30.0
"""How long a client may read nothing while something waits for it to read."""
CLOSING_SECONDS = 5.0
"""The same, of the rest of its last answer, when nothing more comes behind it."""


class Shared:
    """What the connections of one server have in common."""

    def __init__(
        self, app: AppWrapper, config: Config, hang_ups: HangUps, *, allows_http2: bool
    ) -> None:
        self.app = app
        self.config = config
        self.context = WorkerContext(None)
        self.hang_ups = hang_ups
        self.allows_http2 = allows_http2


class Connection(TCPServer):
    """One connection, from its first byte to its last."""

    def __init__(
        self,
        shared: Shared,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_rest: Callable[["Connection", bool], None],
    ) -> None:
        """*on_rest* is told when no request is under way any more (True), or again (False)."""
        loop = asyncio.get_running_loop()
        state = LifespanState()
        super().__init__(shared.app, loop, shared.config, shared.context, state, reader, writer)
        self._shared = shared
        self._on_rest = on_rest
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        """How many bytes the client had yet to read when the timer was started."""
        self._over = asyncio.Event()
        self._watched = -1
        self._ahead = 0
        """How many bytes of the next answer's beginning have been sent already."""

    async def run(self) -> None:
        """Serves the connection until one of its sides has closed it."""
        try:
            tasks = ConnectionTasks(self.loop)
            async with tasks:
                self.protocol = _Protocols(self, tasks)
                await self.protocol.initiate()
                self._start_timer()
                await self._read_data()
                self._stop_timer()
        except* OSError:  # a task group wraps it
            pass
        finally:
            self._stop_timer()
            self._end_watch()
            await self._close()

    def leave(self) -> None:
        """Closes a connection on which nothing is under way, at once: a client that has not read
        its last answer by now does not get the rest."""
        if self.writer.transport.get_write_buffer_size():
            self.cut_off()
        else:
            self.writer.close()

    def leave_when_read(self) -> None:
        """Closes a connection on which nothing is under way, when its client has read its last
        answer."""
        self.writer.close()

    def cut_off(self) -> None:
        """Ends the connection at once, as if the client had gone away."""
        self._end_watch()
        self.writer.transport.abort()

    async def protocol_send(self, event: Event) -> None:
        """Does what the protocol asks for."""
        if isinstance(event, Updated):
            self._on_rest(self, event.idle)
            if event.idle:
                self._start_timer()
            else:
                self._stop_timer()
            return
        if isinstance(event, Closed):
            self._end_watch()
            await self._close()
        elif isinstance(event, RawData):
            data, self._ahead = event.data[self._ahead :], 0
            await self._write(data)
        if self.writer.is_closing():  # a write has failed, before the hang-up was reported
            self._end_watch()

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                if self.writer.is_closing():  # asyncio would log what is written to it
                    raise ConnectionResetError
                self.writer.write(data)
                with given_up_when_unread(self.writer, UNREAD_SECONDS, self.cut_off):
                    await self.writer.drain()
            except (ConnectionError, RuntimeError):
                await asyncio.sleep(0)  # an application may write on without ever waiting
                await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with given_up_when_unread(self.writer, CLOSING_SECONDS, self.cut_off):
            await super()._close()

    async def _read_data(self) -> None:
        with contextlib.suppress(OSError):  # the client has reset it
            data = None
            while data != b"":  # which is the end, and told as well
                data = await self.reader.read(MAX_READ_BYTES)
                await self.protocol.handle(RawData(data))
            await self._outlast_half_close()
        await self.protocol.handle(Closed())

    async def _outlast_half_close(self) -> None:
        """After the last byte that comes from a client: waits until its answers have been sent, or
        until it turns out to be gone."""
        http1 = self.protocol.protocol
        is_possible = self._shared.hang_ups.is_possible and not self.writer.is_closing()
        if not (is_possible and isinstance(http1, Http1) and http1.is_answering):
            return
        self._watched = self.writer.get_extra_info("socket").fileno()
        self._shared.hang_ups.watch(self._watched, self._over.set)
        pause = FIRST_PAUSE_SECONDS
        while not (self._over.is_set() or self.writer.is_closing()):
            self._send_ahead(http1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._over.wait()
            pause *= 2

    def _send_ahead(self, http1: Http1) -> None:
        if self.writer.transport.get_write_buffer_size() == 0:
            byte, is_start = http1.byte_ahead(self._ahead)
            self._ahead += is_start
            self.writer.write(byte)

    def _end_watch(self) -> None:
        if self._watched >= 0:
            self._shared.hang_ups.forget(self._watched, self._over.set)
            self._watched = -1
        self._over.set()

    def _start_timer(self) -> None:
        self._stop_timer()
        # A crowd that came at once does not go at once, which would hold everybody else up.
        seconds = self.config.keep_alive_timeout * random.uniform(1.0, 1.1)
        self._idle_timer = self.loop.call_later(seconds, self._is_idle)
        self._unread = unread_bytes(self.writer)

    def _is_idle(self) -> None:
        if 0 < unread_bytes(self.writer) < self._unread:
            self._start_timer()  # it is reading its last answer
        else:
            self.leave()

    def _stop_timer(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()


class _Protocols(ProtocolWrapper):
    """HTTP/1 as it is spoken here, which hands over to HTTP/2 where that is allowed."""

    def __init__(self, connection: Connection, tasks: ConnectionTasks) -> None:
        # What asyncio has noted: the socket itself does not know its peer once that has reset it.
        known = connection.writer.get_extra_info
        sock: socket.socket = known("socket")
        super().__init__(
            connection.app,
            connection.config,
            connection.context,
            tasks,
            ConnectionState(connection.state),
            False,
            parse_socket_addr(sock.family, known("peername")),
            parse_socket_addr(sock.family, known("sockname")),
            connection.protocol_send,
        )
        self.protocol = Http1(self, allows_http2=connection._shared.allows_http2)
