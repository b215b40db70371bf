"""Waits for an event, but only for a limited time."""

import asyncio


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Waits until *event* is set, for at most *seconds*; True when it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
