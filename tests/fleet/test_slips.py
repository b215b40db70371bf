"""Whatever a hand at the ``nats`` command does to the fleet's streams, the fleet mends by itself.

After each command, models that are loaded and models that are not are served within three seconds,
and a stream that was running goes on to its last character. ``DEATHS`` says how often each, in the
slow test, which has other clients beside it.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator

import pytest

from protocol.catalogue import Profile
from tests.fleet.test_placing import profiles
from tests.support.fleet import TestFleet, running_fleet
from tests.support.matrix import RUNS
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play
from tests.support.scripted import Script
from tests.support.slips import KINDS, Nats, Slip
from tests.support.waiting import until
from tests.support.words import answer, words

pytestmark = pytest.mark.xdist_group("wall_clock")

MENDED_SECONDS = 3.0
"""Within which everything is served again."""
EDITED_SECONDS = 8.0
"""The same, where a bucket has lost what it confirmed until its configuration was restored: what a
gateway wants, and no longer wants, is known again when the record expires."""
RESTORED_SECONDS = 1.5
"""Within which a configuration is restored."""
LONG = 4000
CLIENTS = 3


@contextlib.asynccontextmanager
async def small_fleet(nats: NatsServer) -> AsyncIterator[TestFleet]:
    """Room for one model on each of two nodes: ``a`` is pinned on the first one; ``b``, and ``c``,
    which an operator has added, take turns on the second."""
    script = Script(answer, step_seconds=0.01)
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, name="n1", models=(), memory_mb=100)
        await fleet.add_node(script.start, name="n2", models=(), memory_mb=100)
        operations = fleet.gateway.placement.operations
        added = Profile("c", source="cortex-demo", vram_mb=60)
        await operations.add(added)
        await until(lambda: {"a", "b", "c"} <= set(fleet.gateway.fleet.models()))
        await operations.pin("a", ["n1"])
        await fleet.ready("a")
        assert (await fleet.chat(model="b", max_tokens=2)).status_code == 200
        yield fleet


async def is_served(fleet: TestFleet, model: str, limit: float = MENDED_SECONDS) -> str:
    """How a new request fares: empty when well."""
    began = time.monotonic()
    said = await fleet.chat(model=model, max_tokens=2)
    seconds = time.monotonic() - began
    if said.status_code == 200 and seconds < limit:
        return ""
    return f"{model}: {said.status_code} after {seconds:.1f} s: {said.text[:200]}"


async def mended(fleet: TestFleet, slip: Slip, other: str) -> list[str]:
    """Does it, and asks for what is loaded and for what is not; what went wrong."""
    async with http_client() as client:
        tape = Tape()
        sent = {"model": "a", "seed": 7, "max_tokens": LONG}
        running = asyncio.create_task(play(client, fleet.url, tape, **sent))
        await until(lambda: tape.text, what="the stream begins")
        try:
            await slip.do()
            is_edit = slip.kind.endswith(": edit")
            limit = EDITED_SECONDS if is_edit else MENDED_SECONDS
            models = ("a", other)
            asked = await asyncio.gather(*(is_served(fleet, model, limit) for model in models))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        wrong = [found for found in asked if found]
        if not "".join(words(7, LONG)).startswith(tape.text):
            wrong.append("the stream is not what it was")
        if tape.error or tape.worst_gap > 1.0:
            wrong.append(f"the stream paused for {tape.worst_gap:.1f} s: {tape.error}")
    return [f"{slip.what}: {one}" for one in wrong]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_slip_of_the_hand_is_mended(nats: NatsServer, kind: str) -> None:
    """One command of each kind, of many a random one."""
    async with small_fleet(nats) as fleet:
        found = [slip async for slip in Nats(fleet.gateway.bus).slips() if slip.kind == kind]
        if not found:
            pytest.skip("the bucket is empty: nobody wants anything")
        slip = random.Random(kind).choice(found)
        assert await mended(fleet, slip, "c") == []
        assert await is_served(fleet, "b") == ""


async def ask_on(fleet: TestFleet, wrong: list[str]) -> None:
    """One of the clients beside: asks without a pause."""
    while True:
        if found := await is_served(fleet, "a"):
            wrong.append(f"meanwhile: {found}")


async def all_mended(fleet: TestFleet, *, edits: bool, seed: int = 0) -> list[str]:
    """Does everything in a random order, either edits of configurations or all else."""
    slips = [slip async for slip in Nats(fleet.gateway.bus).slips()]
    slips = [slip for slip in slips if slip.kind.endswith(": edit") == edits]
    assert len(slips) > 100
    random.Random(seed).shuffle(slips)
    wrong = []
    for number, slip in enumerate(slips):
        await until(Nats(fleet.gateway.bus).is_whole)
        found = await mended(fleet, slip, "bc"[number % 2])
        sys.stdout.write(f"{slip.what}: {found}\n")
        wrong += found
        if edits:
            await asyncio.sleep(RESTORED_SECONDS)  # a lane made smaller refuses the next ones
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(600 * RUNS)
async def test_every_slip_of_the_hand_is_mended(nats: NatsServer) -> None:
    wrong: list[str] = []
    async with small_fleet(nats) as fleet, asyncio.TaskGroup() as beside:
        clients = [beside.create_task(ask_on(fleet, wrong)) for _ in range(CLIENTS)]
        for run in range(RUNS):
            wrong += await all_mended(fleet, edits=False, seed=run)
        for client in clients:
            client.cancel()
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_edit_is_mended(nats: NatsServer) -> None:
    """Without clients beside: until a lane that was made smaller is restored, it may be full."""
    async with small_fleet(nats) as fleet:
        assert await all_mended(fleet, edits=True) == []
