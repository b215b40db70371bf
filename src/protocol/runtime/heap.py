"""Gives memory back to the system that the allocator keeps.

What was allocated in a burst is free afterwards, but between things that are still there, so that
the allocator keeps it; and over hours, allocations of all sizes leave more and more such holes.
glibc can give back the pages in them; elsewhere nothing happens.
"""

import asyncio
from typing import NoReturn

from protocol.runtime.malloc import give_back_memory

EVERY_SECONDS = 10.0


async def keep_heap_small() -> NoReturn:
    """Gives memory back every few seconds, until cancelled. Usually that takes a fraction of a
    millisecond, and after a burst of tens of megabytes, a few."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        # In a thread: the event loop waits only where it has to allocate meanwhile.
        await asyncio.to_thread(give_back_memory)
