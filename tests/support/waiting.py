"""Waiting in tests: for a condition, with a deadline, never for a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any


async def until(
    condition: Callable[[], object | Awaitable[object]], *, seconds: float = 10.0, what: str = ""
) -> None:
    """Polls every few milliseconds until *condition* is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def background(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a coroutine beside the block and cancels it at the end; its failure fails the test."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def seconds_until(condition: Callable[[], bool]) -> float:
    """Looked at every half millisecond."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.0005)
    return time.monotonic() - began


async def settled(value: Callable[[], int]) -> int:
    """What it is when it has been the same for half a second."""
    found, since = value(), time.monotonic()
    while time.monotonic() - since < 0.5:
        await asyncio.sleep(0.01)
        if value() != found:
            found, since = value(), time.monotonic()
    return found
