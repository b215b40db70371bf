"""nats-py's client, with guards where it fails: what it writes may go nowhere, never astray.

Owns every hook into nats-py's private parts, which is why ``pyproject.toml`` names one version of
it; ``tests/protocol/test_client.py`` lists the hooks. Knows nothing of what is sent.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

log = logging.getLogger("bus")

NO_HEADERS: dict[str, str] = {}


class BusMessage(NamedTuple):
    """A received message."""

    subject: str
    data: bytes
    reply: str
    headers: dict[str, str]


Handler = Callable[[BusMessage], None]
"""Called for each message in order; must not block. Its exceptions are logged, never fatal."""


def handle(handler: Handler, message: BusMessage) -> None:
    """Calls *handler*, whose exceptions would stop nats-py's read loop."""
    try:
        handler(message)
    except Exception:
        log.exception("while handling a message on %s", message.subject)


class GuardedTransport(TcpTransport):  # type: ignore[misc]
    """Writes of nats-py, some of which come after asyncio has closed the connection.

    asyncio answers those with a TypeError, an AttributeError, a RuntimeError or a line in its log,
    depending on its version, and nats-py expects none of them: its flusher ends in silence, and
    ``close()`` stops halfway. Here they are the ConnectionResetError that nats-py handles where
    what was to be sent is kept for the next connection, and nothing at all elsewhere.
    """

    is_last = False
    """Whether the client is closing for good: what cannot be sent any more is dropped."""

    def __bool__(self) -> bool:
        return True  # else nats-py makes one of its own instead

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that takes bytes."""
        return self._io_writer is not None and not self._io_writer.is_closing()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connects, once what is left of an earlier attempt is gone."""
        self.abort()
        await super().connect(uri, buffer_size, connect_timeout)

    def write(self, payload: bytes) -> None:
        """Sends a ping or a subscription, which the next connection has anyway."""
        if self.is_open:
            super().write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Sends what is pending; raises ConnectionResetError to have it kept."""
        if self.is_open:
            super().writelines(payload)
        elif not self.is_last:
            raise ConnectionResetError("the connection to NATS is closed")

    async def drain(self) -> None:
        """Waits until there is room to write; raises ConnectionResetError."""
        if not self.is_last:
            await super().drain()

    def close(self) -> None:
        """Closes; what was written is waited for only if the client closes for good."""
        if self.is_last:
            super().close()
        else:
            self.abort()

    def abort(self) -> None:
        """Closes at once, as a server that reads nothing would be waited for without bound."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


class GuardedClient(Client):  # type: ignore[misc]
    """Writes through :class:`GuardedTransport`, and hands messages to handlers as they are read.

    The queue, the task and the message object that nats-py puts between cost a gateway as much for
    a token as everything else it does with it.
    """

    _transport: Any

    async def abandon(self) -> None:
        """Ends what ``close()`` has left, where it could not finish in time."""
        self._status = Client.CLOSED
        if isinstance(self._transport, GuardedTransport):
            self._transport.abort()
        tasks = (
            *(self._reading_task, self._flusher_task),
            *(self._ping_interval_task, self._reconnection_task),
        )
        left = {task for task in tasks if task is not None and not task.done()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1)

    async def _connect_to_server(self, server: Any) -> None:
        if self._transport is None and server.uri.scheme not in ("ws", "wss"):
            self._transport = GuardedTransport()
        await super()._connect_to_server(server)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        flushed = None
        try:
            flushed = await super()._flush_pending(force_flush)
        except OSError as error:  # it wrote itself because its flusher had ended
            await self._process_op_err(error)
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError  # which nats-py swallows
        return flushed

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Whoever asked has given up; its answer would be an error that ends the read loop.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if isinstance(self._transport, GuardedTransport):
            self._transport.is_last = True
        await super()._close(status, do_cbs)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        subscription = self._subs.get(sid)  # gone at the last message of one with a limit
        handler = getattr(getattr(subscription, "_cb", None), "handler", None)
        if handler is None:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
            return message
        handle(handler, BusMessage(subject.decode(), data, reply.decode(), headers or NO_HEADERS))
        return None
