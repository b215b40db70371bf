"""An HTTP server that stops within a bound, whatever its clients do; the only module that knows
Hypercorn.

Hypercorn reads and writes the connections. Listening and stopping are done here, because
Hypercorn's own shutdown waits without bound for open connections from Python 3.12 on, cannot be
cancelled there, and prints stack traces of what it cuts off.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import LifespanState

from protocol.runtime.listen import BACKLOG

log = logging.getLogger("http")

App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application: scope, receive, send."""

IDLE_CONNECTION_SECONDS = 10.0
"""How long an idle connection is kept: longer than the five seconds after which the usual clients
close theirs. Not more, because Hypercorn holds a connection that its client has closed for the same
time, including its file descriptor and tasks."""

CUT_OFF_SECONDS = 1.0
"""How long a connection that was cut off may take to end before its task is cancelled."""


@contextlib.asynccontextmanager
async def http_server(
    app: App, listener: socket.socket, *, drain_seconds: float
) -> AsyncIterator[None]:
    """Serves *app* on *listener* for the length of the block, then lets answers finish.

    What is still open after *drain_seconds* is cut off, as if its client had gone away.
    """
    connections = _Connections(app)
    server = await asyncio.start_server(connections.begin, sock=listener, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        await connections.end(drain_seconds)


class _Connections:
    """The open connections, each with its task."""

    def __init__(self, app: App) -> None:
        self._app = ASGIWrapper(app)
        self._config = _config()
        self._context = WorkerContext(None)
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._is_cut_off = False

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a new connection. It is not a coroutine, because asyncio would report how that
        ends."""
        loop, state = asyncio.get_running_loop(), LifespanState()
        server = TCPServer(self._app, loop, self._config, self._context, state, reader, writer)
        task = loop.create_task(server.run(), name="http")
        self._open[task] = writer
        task.add_done_callback(self._ended)
        if self._is_cut_off:
            writer.transport.abort()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        error = None if task.cancelled() else task.exception()
        if error and not self._is_cut_off:
            log.warning("a connection failed: %r", error)

    async def end(self, drain_seconds: float) -> None:
        """Closes idle connections at once, the others after their answer, and all of them within
        the bound."""
        await self._context.terminated.set()
        await self._until_none_is_open(drain_seconds)
        self._is_cut_off = True
        for writer in self._open.values():
            writer.transport.abort()
        await self._until_none_is_open(CUT_OFF_SECONDS)
        for task in self._open:
            task.cancel()
        await self._until_none_is_open(CUT_OFF_SECONDS)

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
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
