"""Finds out which request is to blame when an engine dies.

A request that kills engines must be told apart from those that merely ran beside it. A request that
has received a token from an engine is innocent of that engine's death. A *suspect* (an earlier
engine died before giving this request a token) therefore runs while no other request on the engine
is without a token.
"""

import asyncio


class Suspects:
    """The jobs of one engine that have no token yet."""

    def __init__(self) -> None:
        self._young: set[int] = set()
        self._suspects_waiting = 0
        self._suspect: int | None = None
        self._changed = asyncio.Event()

    async def enter(self, sequence_id: int, *, suspect: bool) -> None:
        """Waits until the job may enter the engine; suspects go first, one at a time."""
        self._suspects_waiting += suspect
        try:
            while self._suspect is not None or (self._young if suspect else self._suspects_waiting):
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._suspects_waiting -= suspect
            self._notify()
        self._young.add(sequence_id)
        if suspect:
            self._suspect = sequence_id

    def leave(self, sequence_id: int) -> None:
        """Records that the job has a token or is over; may be called repeatedly."""
        self._young.discard(sequence_id)
        if self._suspect == sequence_id:
            self._suspect = None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
