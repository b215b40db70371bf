"""Gives memory back to the system that a burst has left in the allocator.

What was allocated in a burst is free afterwards, but between things that are still there, so that
the allocator keeps it. glibc can give back whole pages in between; elsewhere nothing happens.
"""

import asyncio

from protocol.runtime.malloc import give_back_much_memory

PAUSE_SECONDS = 10.0
TIMES = 4


class HeapKeeper:
    """Gives memory back every few seconds for a while after a burst."""

    def __init__(self) -> None:
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None

    def note_burst(self) -> None:
        """Something large has been freed, or will be."""
        self._left = TIMES
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._give_back)

    def _give_back(self) -> None:
        # In a thread: the event loop waits only where it has to allocate meanwhile.
        given = asyncio.get_running_loop().run_in_executor(None, give_back_much_memory)
        given.add_done_callback(self._go_on)

    def _go_on(self, _: object) -> None:
        self._left -= 1
        self._timer = None
        if self._left:
            self._arm()
