"""What holds the event loop is noticed and named."""

import asyncio
import logging
import re
import time

import pytest

from protocol.runtime.loop_watch import HELD_SECONDS, UNSEEN_SECONDS, LoopWatch
from tests.support.waiting import background, until


def a_slow_function(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


async def test_what_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    held: list[float] = []
    watch = LoopWatch(held.append)

    async def handler() -> None:
        a_slow_function(0.4)

    with caplog.at_level(logging.WARNING, "loop"):
        async with background(watch.run()):
            await asyncio.sleep(0.2)
            await asyncio.create_task(handler(), name="POST /v1/messages from 10.0.0.7")
            await until(lambda: held)
    assert max(held) == pytest.approx(0.4, abs=0.2)
    assert watch.longest_seconds == max(held)
    told = caplog.text
    assert "POST /v1/messages from 10.0.0.7" in told
    assert "a_slow_function (protocol/test_loop_watch.py:" in told


async def test_nobody_is_blamed_for_what_cannot_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    """A library's call that keeps Python's lock holds the thread that looks as well."""
    held: list[float] = []

    async def to_blame() -> None:
        re.fullmatch("(a|aa)+b", "a" * 34)

    async def innocent() -> None:
        a_slow_function(0.01)

    with caplog.at_level(logging.WARNING, "loop"):
        async with background(LoopWatch(held.append).run()):
            await asyncio.sleep(0.2)
            to_blame_now = asyncio.create_task(to_blame(), name="it")
            tasks = [asyncio.create_task(innocent(), name="an innocent one") for _ in range(10)]
            await asyncio.gather(to_blame_now, *tasks)
            await until(lambda: held)
    assert max(held) > UNSEEN_SECONDS
    assert "innocent" not in caplog.text
    assert "a library's call" in caplog.text


async def test_a_loop_that_only_waits_is_not_held() -> None:
    held: list[float] = []
    async with background(LoopWatch(held.append).run()):
        for _ in range(20):
            await asyncio.sleep(0.01)
    assert max(held, default=0.0) < 4 * HELD_SECONDS, "but for what the machine itself does"
