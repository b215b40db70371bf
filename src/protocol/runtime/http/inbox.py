"""Runs an application on one request, and keeps what it has yet to receive: a bounded number of
bytes, for which nobody waits once the application has ended."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.config import Config
from hypercorn.typing import AppWrapper

MAX_UNREAD_BYTES = 32 << 10
"""How much of a body may wait for its application."""
MESSAGE_BYTES = 512
"""What a message takes beside its body."""


class ConnectionTasks(TaskGroup):
    """The tasks of one connection."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Runs an application on one request; returns what gives it the parts of its body."""
        inbox = Inbox()

        async def run() -> None:
            receive: Any = inbox.get
            try:
                with contextlib.suppress(Exception):  # Starlette has logged it and answered 500
                    # The last two are for applications that are not coroutines.
                    await app(scope, receive, send, _no_threads, _no_threads)
            finally:
                inbox.close()
                await send(None)

        self.spawn(run)
        return inbox.put


def _no_threads(*_: Any) -> Any:
    raise TypeError("applications here are coroutines; none runs in a thread")


class Inbox:
    """The messages that one application has yet to receive, at most some bytes of them."""

    def __init__(self) -> None:
        self._messages: deque[dict[str, Any]] = deque()
        self._bytes = 0
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_closed = False

    @property
    def held_bytes(self) -> int:
        """What the messages in it take."""
        return self._bytes

    async def put(self, message: dict[str, Any]) -> None:
        """Adds a message, when there is room; the last one always has room."""
        if message["type"] != "http.disconnect":
            await self._has_room.wait()
        if self._is_closed:
            return
        self._messages.append(message)
        self._bytes += _size(message)
        if self._bytes >= MAX_UNREAD_BYTES:
            self._has_room.clear()
        self._has_some.set()

    async def get(self) -> dict[str, Any]:
        """Returns the next message; the last one again and again."""
        while not self._messages:
            self._has_some.clear()
            await self._has_some.wait()
        message = self._messages[0]
        if message["type"] != "http.disconnect":
            self._messages.popleft()
            self._bytes -= _size(message)
            if self._bytes < MAX_UNREAD_BYTES:
                self._has_room.set()
        return message

    def close(self) -> None:
        """Drops what is in it and what comes: nobody receives it any more."""
        self._is_closed = True
        self._messages.clear()
        self._bytes = 0
        self._has_room.set()


def _size(message: dict[str, Any]) -> int:
    return len(message.get("body", b"")) + MESSAGE_BYTES
