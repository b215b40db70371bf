"""A queue whose reader takes everything that has arrived at once.

Tokens of many streams arrive in bursts; one wake-up and one write per client and loop tick is
what keeps a gateway cheap.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """One reader, any number of writers, one event loop."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = asyncio.Event()
        self.is_closed = False

    def put(self, item: T) -> None:
        """Adds an item; never blocks."""
        self._items.append(item)
        self._arrived.set()

    def close(self) -> None:
        """The reader shall stop; what is in the inbox does not matter any more."""
        self.is_closed = True
        self._arrived.set()

    async def wait(self) -> None:
        """Until something has arrived or the inbox is closed; takes nothing."""
        await self._arrived.wait()

    async def take(self, timeout: float) -> list[T]:
        """All items; empty after *timeout* seconds without one, or when closed."""
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            pass
        items, self._items = self._items, []
        if not self.is_closed:
            self._arrived.clear()
        return items
