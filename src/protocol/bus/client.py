"""nats-py's client, with guards around what fails in it.

This module owns every hook into nats-py's private parts, which is why ``pyproject.toml`` pins one
version of it; ``tests/protocol/test_client.py`` lists the hooks. It knows nothing of what is sent.
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
    """Calls *handler* and logs its exceptions, which would stop nats-py's read loop."""
    try:
        handler(message)
    except Exception:
        log.exception("while handling a message on %s", message.subject)


class GuardedTransport(TcpTransport):  # type: ignore[misc]
    """A TCP transport that nats-py may go on writing to after asyncio has closed it.

    Depending on its version, asyncio answers such a write with a TypeError, an AttributeError, a
    RuntimeError or a line in its log, and nats-py expects none of them: its flusher ends in silence
    and ``close()`` stops halfway. Here the write raises the ConnectionResetError that nats-py
    handles where it keeps what was to be sent for the next connection, and does nothing elsewhere.
    """

    is_last = False
    """Whether the client is closing for good, so that what can no longer be sent is dropped."""

    def __bool__(self) -> bool:
        return True  # or nats-py would make one of its own

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that can be written to."""
        return self._io_writer is not None and not self._io_writer.is_closing()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connects, after closing what is left of an earlier attempt."""
        self.abort()
        await super().connect(uri, buffer_size, connect_timeout)

    def write(self, payload: bytes) -> None:
        """Sends a ping or a subscription; the next connection sends its own."""
        if self.is_open:
            super().write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Sends what is pending; raises ConnectionResetError so that nats-py keeps it."""
        if self.is_open:
            super().writelines(payload)
        elif not self.is_last:
            raise ConnectionResetError("the connection to NATS is closed")

    async def drain(self) -> None:
        """Waits until there is room to write; raises ConnectionResetError."""
        if not self.is_last:
            await super().drain()

    def close(self) -> None:
        """Closes; waits for what was written only when the client closes for good."""
        if self.is_last:
            super().close()
        else:
            self.abort()

    def abort(self) -> None:
        """Closes at once: waiting for a server that reads nothing would never end."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


class GuardedClient(Client):  # type: ignore[misc]
    """Writes through :class:`GuardedTransport`, and calls handlers as messages are read.

    The queue, the task and the message object that nats-py puts in between would cost a gateway as
    much per token as everything else that it does with one.
    """

    _transport: Any

    async def abandon(self) -> None:
        """Ends what ``close()`` has left running where it could not finish in time."""
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
        except OSError as error:  # it wrote by itself, as its flusher had ended
            await self._process_op_err(error)
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError  # which nats-py swallows
        return flushed

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Whoever waited for it has given up; answering would raise and end the read loop.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if isinstance(self._transport, GuardedTransport):
            self._transport.is_last = True
        await super()._close(status, do_cbs)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        subscription = self._subs.get(sid)  # absent at the last message of a limited one
        handler = getattr(getattr(subscription, "_cb", None), "handler", None)
        if handler is None:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
            return message
        handle(handler, BusMessage(subject.decode(), data, reply.decode(), headers or NO_HEADERS))
        return None
