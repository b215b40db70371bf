"""A queue whose reader takes everything that has arrived at once.

Tokens of many streams arrive in bursts; one wake-up and one write per client and loop tick is
what keeps a gateway cheap.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """One reader, any number of writers, one event loop."""

    def __init__(self, arrived: asyncio.Event | None = None) -> None:
        """*arrived* is set whenever something has come; one for several inboxes that one reader
        empties together."""
        self._items: list[T] = []
        self.arrived = arrived or asyncio.Event()

    def put(self, item: T) -> None:
        """Adds an item; never blocks."""
        self._items.append(item)
        self.arrived.set()

    def drain(self) -> list[T]:
        """All items there are."""
        items, self._items = self._items, []
        return items
