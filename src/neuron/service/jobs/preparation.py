"""Jobs whose prompts are being prepared: they are this neuron's before it has accepted them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from neuron.service.jobs.registry import JobEntry
from protocol.bus import Bus
from protocol.bus.jobs import IN_PROGRESS

IN_PROGRESS_SECONDS = 0.5
"""This often the stream is told not to deliver such a job again."""


@contextlib.asynccontextmanager
async def in_progress(bus: Bus, entry: JobEntry) -> AsyncIterator[None]:
    """Keeps the stream from delivering a job again, to this neuron or another, during the block."""

    async def say() -> None:
        while True:
            await asyncio.sleep(IN_PROGRESS_SECONDS)
            if entry.ack:
                await bus.publish(entry.ack, IN_PROGRESS)

    saying = asyncio.create_task(say(), name=f"in progress {entry.id}")
    try:
        yield
    finally:
        saying.cancel()
