"""Whatever a model's folder contains, a load of it is refused in a sentence or succeeds, and nobody
else on its node notices."""

import contextlib
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.neuron.text_process.test_bombs import ticking
from tests.support.fleet import TestFleet
from tests.support.hostile_folders import Hostile, hostile_folders
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play
from tests.support.waiting import background, until
from tests.support.watched import WatchedEngines, real_fleet

pytestmark = pytest.mark.xdist_group("wall_clock")

LOADED_SECONDS = 20.0
GAP_SECONDS = 1.0
LOOP_SECONDS = 0.25
"""For gateway, node and test together, whose garbage collection alone takes a tenth."""
NOISE = 3.0
"""By how much the limits may be exceeded beside other tests."""


@contextlib.asynccontextmanager
async def somebody_else(fleet: TestFleet, noise: float) -> AsyncIterator[list[str]]:
    """Reads streams of the demo model, again and again; what was wrong with them."""
    wrong: list[str] = []

    async def read() -> None:
        async with http_client() as client:
            while True:
                tape = Tape()
                sent = {"model": "cortex-demo", "max_tokens": 200, "min_tokens": 200}
                await play(client, fleet.url, tape, **sent)
                if tape.error or tape.worst_gap > noise * GAP_SECONDS:
                    wrong.append(f"a gap of {tape.worst_gap:.1f} s: {tape.error}")

    async with background(read()):
        yield wrong


async def fate(fleet: TestFleet, model: str, folder: Path) -> str:
    """How a load ends: the reason why not, or "" where the model answers."""
    body = {"model": model, "source": str(folder)}
    said = await fleet.client.post("/models/load", json=body)
    if said.status_code != 202:
        return str(said.json()["error"]["message"])

    def records() -> list[str]:
        placed = fleet.gateway.fleet.placed(model)
        return [one.record.error.message for one in placed if one.record.error]

    await until(lambda: records() or fleet.gateway.fleet.ready(model), seconds=LOADED_SECONDS)
    if failed := records():
        return failed[0]
    answer = await fleet.chat(model=model, max_tokens=2)
    return "" if answer.status_code == 200 else str(answer.json()["error"]["message"])


def faults(reason: str, stood_still: float, noise: float) -> list[str]:
    """What is wrong with how a load ended."""
    found = []
    if stood_still > noise * LOOP_SECONDS:
        found.append(f"the loop stood still for {stood_still:.3f} s")
    if len(reason) > 1_000:
        found.append(f"{len(reason)} characters")
    if re.search(r"Traceback|Errno|\b[A-Z]\w+(Error|Exception)\b", reason):
        found.append("no words of ours")
    return found


async def try_out(
    fleet: TestFleet, folder: Path, hostile: Hostile, noise: float
) -> tuple[str, list[str]]:
    """Loads one; why it was refused, and what was wrong."""
    worst = [0.0]
    began = time.monotonic()
    async with background(ticking(worst)):
        reason = await fate(fleet, "hostile", folder)
        await fleet.client.post("/models/unload", json={"model": "hostile"})
        await until(lambda: not fleet.gateway.fleet.placed("hostile"), seconds=LOADED_SECONDS)
    seconds = time.monotonic() - began
    found = faults(reason, worst[0], noise)
    sys.stdout.write(f"{hostile.name}: {seconds:.1f} s: {reason or 'it is served'} {found}\n")
    return reason, [f"{hostile.name}: {one}: {reason}" for one in found]


async def try_all(
    nats: NatsServer, folder: Path, hostiles: list[Hostile], noise: float
) -> Counter[str]:
    """Loads them one after the other, beside somebody else's streams; how often how it ended."""
    ends: Counter[str] = Counter()
    for number, hostile in enumerate(hostiles):
        hostile.make(folder / str(number))
    async with (
        real_fleet(nats, WatchedEngines()) as fleet,
        somebody_else(fleet, noise) as wrong,
    ):
        for number, hostile in enumerate(hostiles):
            reason, found = await try_out(fleet, folder / str(number), hostile, noise)
            ends["refused" if reason else "served"] += 1
            wrong += found
        assert (await fleet.chat(max_tokens=2)).status_code == 200
    assert wrong == []
    return ends


async def test_some_hostile_folders(nats: NatsServer, tmp_path: Path) -> None:
    some = random.Random(0).sample([*hostile_folders()], 12)
    ends = await try_all(nats, tmp_path, some, NOISE)
    assert ends["refused"] > 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_all_hostile_folders(nats: NatsServer, tmp_path: Path) -> None:
    ends = await try_all(nats, tmp_path, [*hostile_folders()], 1.0)
    sys.stdout.write(f"{ends}\n")
    assert ends["refused"] > 100
