"""A queue whose reader takes everything that has arrived at once.

Tokens of many streams arrive in bursts; one wake-up and one write per client and event-loop tick
keep a gateway cheap to run.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue for one reader and any number of writers on one event loop."""

    def __init__(self, arrived: asyncio.Event | None = None) -> None:
        """Sets *arrived* whenever an item comes; several inboxes may share it if one reader empties
        them together."""
        self._items: list[T] = []
        self.arrived = arrived or asyncio.Event()

    def put(self, item: T) -> None:
        """Adds an item; never blocks."""
        self._items.append(item)
        self.arrived.set()

    def drain(self) -> list[T]:
        """Removes and returns all items."""
        items, self._items = self._items, []
        return items
