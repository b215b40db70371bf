"""A disk that is full, and then is not: refused at once with NATS's own reason, and mended."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.support.fleet import TestFleet, scripted_fleet
from tests.support.nats import running_nats
from tests.support.processes import Tape, http_client, play
from tests.support.scripted import Script
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.waiting import until
from tests.support.words import answer, words

pytestmark = pytest.mark.xdist_group("wall_clock")

NOTICED_SECONDS = 3.0
REFUSED_SECONDS = 0.1
MENDED_SECONDS = 3.0
LONG = 4000
CLIENTS = 3


@contextlib.asynccontextmanager
async def fleet_on_a_small_disk(folder: Path) -> AsyncIterator[tuple[TestFleet, SmallDisk]]:
    with (
        small_disk(folder / "disk") as disk,
        running_nats(disk.path) as nats,
    ):
        async with scripted_fleet(nats, Script(answer, step_seconds=0.01), nodes=2) as fleet:
            await until(lambda: is_ready(fleet), what="the fleet is ready")
            yield fleet, disk


async def is_ready(fleet: TestFleet) -> bool:
    return (await fleet.client.get("/ready")).status_code == 200


async def full_and_freed(fleet: TestFleet, disk: SmallDisk, seed: int) -> tuple[float, float]:
    """Seconds until it is noticed, and until everything is well again."""
    async with http_client() as client:
        tape = Tape()
        playing = play(client, fleet.url, tape, seed=seed, max_tokens=LONG)
        running = asyncio.create_task(playing)
        try:
            seen = await _full_and_freed(fleet, disk, tape)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert tape.error is None
    assert "".join(words(seed, LONG)).startswith(tape.text)
    assert tape.worst_gap < 1.0
    return seen


async def _full_and_freed(fleet: TestFleet, disk: SmallDisk, tape: Tape) -> tuple[float, float]:
    await until(lambda: tape.text)
    disk.fill()
    began = time.monotonic()
    await until(lambda: _not_ready(fleet), seconds=NOTICED_SECONDS, what="it is noticed")
    noticed = time.monotonic() - began
    for _ in range(5):
        began = time.monotonic()
        said = await fleet.chat(max_tokens=2)
        assert time.monotonic() - began < REFUSED_SECONDS
        assert said.status_code == 503
        assert "no space left on device" in said.text, said.text
        assert "retry-after" in said.headers
        assert str(disk.path) not in said.text
    told = (await fleet.client.get("/ready")).json()
    assert "no space left on device" in told["reason"]
    disk.free()
    began = time.monotonic()
    await until(lambda: _answers(fleet), seconds=MENDED_SECONDS, what="it is mended")
    mended = time.monotonic() - began
    assert await is_ready(fleet)
    return noticed, mended


async def _not_ready(fleet: TestFleet) -> bool:
    return not await is_ready(fleet)


async def _answers(fleet: TestFleet) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return (await fleet.chat(max_tokens=2)).status_code == 200
    return False


async def test_a_full_disk_is_told_and_mended(tmp_path: Path) -> None:
    async with fleet_on_a_small_disk(tmp_path) as (fleet, disk):
        for seed in range(3):
            await full_and_freed(fleet, disk, seed)


async def ask_on(fleet: TestFleet) -> None:
    """One of the clients beside: asks without a pause, and is never kept waiting."""
    while True:
        began = time.monotonic()
        said = await fleet.chat(max_tokens=2)
        assert said.status_code in (200, 503), said.text
        assert time.monotonic() - began < NOTICED_SECONDS
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_full_disk_many_times(tmp_path: Path) -> None:
    async with fleet_on_a_small_disk(tmp_path) as (fleet, disk), asyncio.TaskGroup() as beside:
        clients = [beside.create_task(ask_on(fleet)) for _ in range(CLIENTS)]
        seen = [await full_and_freed(fleet, disk, seed) for seed in range(10)]
        for client in clients:
            client.cancel()
    sys.stdout.write("".join(f"noticed {a:.2f} s, mended {b:.2f} s\n" for a, b in seen))
    assert max(mended for _, mended in seen) < MENDED_SECONDS, seen
