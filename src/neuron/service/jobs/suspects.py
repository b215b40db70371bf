"""Whom to blame when an engine dies.

A request that kills engines has to be told from those that only happened to be there. Whoever has
got a token out of an engine is innocent of its death; so a *suspect* (an earlier engine died before
it gave this request a token) runs while nobody else on the engine is without one.
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
        """Waits until it may go to the engine; suspects go first, one by one."""
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
        """It has a token, or is over; right any number of times."""
        self._young.discard(sequence_id)
        if self._suspect == sequence_id:
            self._suspect = None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
