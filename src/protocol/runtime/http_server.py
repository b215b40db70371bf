"""An HTTP server that stops within a bound, whatever its clients do, and keeps a bounded number of
connections.

Hypercorn reads and writes the connections. Listening and stopping are done here, because
Hypercorn's own shutdown waits without bound for open connections from Python 3.12 on, cannot be
cancelled there, and prints stack traces of what it cuts off.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config

from protocol.runtime.http.connection import MAX_READ_BYTES, Connection, Shared
from protocol.runtime.http.crowd import Crowd, HttpLimits
from protocol.runtime.http.hang_ups import HangUps
from protocol.runtime.listen import BACKLOG

log = logging.getLogger("http")

App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application: scope, receive, send."""

IDLE_CONNECTION_SECONDS = 10.0
"""How long an idle connection is kept: longer than the five seconds after which the usual clients
close theirs."""

CUT_OFF_SECONDS = 1.0
"""How long a connection that was cut off may take to end before its task is cancelled."""


AT_A_TIME = 8
"""Connections that are accepted before the others are served again."""

LOG_SECONDS = 10.0
"""The shortest time between two lines about too many connections."""

_REFUSAL_TEXT = (
    b"The server has as many connections as it keeps. Try again in a moment, and close connections "
    b"that you do not use.\n"
)
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%b"
) % (len(_REFUSAL_TEXT), _REFUSAL_TEXT)


@contextlib.asynccontextmanager
async def http_server(
    app: App, listener: socket.socket, *, drain_seconds: float, limits: HttpLimits | None = None
) -> AsyncIterator[None]:
    """Serves *app* on *listener* for the length of the block, then lets answers finish.

    There are at most as many connections as *limits* and the process's open files allow.

    What is still open after *drain_seconds* is cut off, as if its client had gone away.
    """
    connections = _Connections(app, affordable(limits or HttpLimits()))
    server = await asyncio.start_server(
        connections.begin, sock=listener, backlog=AT_A_TIME, limit=MAX_READ_BYTES // 2
    )
    listener.listen(BACKLOG)  # what the kernel keeps meanwhile, which asyncio has set to the same
    try:
        yield
    finally:
        server.close()
        await connections.end(drain_seconds)


def affordable(limits: HttpLimits) -> HttpLimits:
    """Lowers the number of connections to what this process may open, so that some descriptors are
    left for everything else."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return limits
    return limits._replace(connections=min(limits.connections, allowed - allowed // 4))


class _Connections:
    """The open connections, each with its task."""

    def __init__(self, app: App, limits: HttpLimits) -> None:
        self._hang_ups = HangUps()
        self._shared = Shared(
            ASGIWrapper(app), _config(), self._hang_ups, allows_http2=limits.http2
        )
        self._crowd: Crowd[Connection] = Crowd(limits)
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._is_cut_off = False
        self._logged = float("-inf")

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a new connection. It is not a coroutine, because asyncio would report how that
        ends."""
        peername = writer.get_extra_info("peername")
        if peername is None:  # it has reset the connection already, as some health checks do
            writer.transport.abort()
            return
        peer = (peername or ("",))[0]
        if self._crowd.too_many(peer):
            self._note_too_many(peer)
            oldest = self._crowd.makes_way(peer)
            if oldest is None:
                writer.write(_REFUSAL)
                writer.close()
                return
            self._crowd.works(oldest)
            oldest.leave()
        transport: Any = writer.transport
        transport.max_size = MAX_READ_BYTES
        connection = Connection(self._shared, reader, writer, self._rests)
        task = asyncio.get_running_loop().create_task(connection.run(), name="http")
        self._open[task] = connection
        self._crowd.add(connection, peer)
        task.add_done_callback(self._ended)
        if self._is_cut_off:
            connection.cut_off()

    def _rests(self, connection: Connection, is_resting: bool) -> None:
        if is_resting:
            self._crowd.rests(connection)
        else:
            self._crowd.works(connection)

    def _note_too_many(self, peer: str) -> None:
        now = time.monotonic()
        if now - self._logged > LOG_SECONDS:
            self._logged = now
            log.warning("too many connections: %d; the last one is from %s", len(self._crowd), peer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._crowd.remove(self._open.pop(task))
        error = None if task.cancelled() else task.exception()
        if error and not self._is_cut_off:
            log.warning("a connection failed: %r", error)

    async def end(self, drain_seconds: float) -> None:
        """Closes idle connections at once, the others after their answer, and all of them within
        the bound."""
        await self._shared.context.terminated.set()
        for connection in self._crowd.resting():
            connection.leave_when_read()
        await self._until_none_is_open(drain_seconds)
        self._is_cut_off = True
        for connection in self._open.values():
            connection.cut_off()
        await self._until_none_is_open(CUT_OFF_SECONDS)
        for task in self._open:
            task.cancel()
        await self._until_none_is_open(CUT_OFF_SECONDS)
        self._hang_ups.close()

    async def _until_none_is_open(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:
                    await asyncio.wait(self._open)


def _config() -> Config:
    config = Config()
    config.keep_alive_timeout = IDLE_CONNECTION_SECONDS
    config.keep_alive_max_requests = 10**9
    config.h11_max_incomplete_size = 64 << 10
    config.h2_max_concurrent_streams = 32
    config.h2_max_header_list_size = 64 << 10
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
