"""A model over two ranks, through the whole fleet: it answers as on one, and no rank's death loses
a stream."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from neuron.engine.watchdog import Deadlines
from protocol.catalogue import Profile
from protocol.fleet import ModelState
from tests.support.fleet import MODEL, TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.ranks import rank_processes
from tests.support.waiting import until
from tests.support.watched import WatchedEngines, real_fleet

QUESTION = "What is 17 + 25?"
PLAIN: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
QUICK = Deadlines(step_seconds=3.0)
TIMES = int(os.environ.get("DEATHS", "1"))
RANKS = [pytest.param(0, marks=pytest.mark.slow), 1]
"""Rank 0's death is that of any engine; the others' is not."""


async def parallel(fleet: TestFleet, engines: WatchedEngines, name: str) -> None:
    """Another node with the model over two ranks."""
    await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
    before = len(fleet.gateway.fleet.ready(MODEL))
    await fleet.add_node(engines.start, name=name)
    await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) > before, seconds=60)


async def test_the_demo_model_answers_as_before(nats: NatsServer) -> None:
    async with real_fleet(nats, WatchedEngines()) as fleet:
        expected = (await fleet.chat(QUESTION, **PLAIN)).json()["choices"]
    engines = WatchedEngines()
    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        await parallel(fleet, engines, "n1")
        assert (await fleet.chat(QUESTION, **PLAIN)).json()["choices"] == expected
        assert engines.engine is not None
        assert len(engines.engine.pids) == 2
        (placed,) = fleet.gateway.fleet.placed(MODEL)
        assert placed.record.estimate is not None
        assert placed.record.estimate.devices == 1, "on a CPU they share it"
        assert any("2 ranks" in line for line in placed.record.estimate.lines)


async def test_a_number_of_ranks_that_does_not_work_is_refused(nats: NatsServer) -> None:
    async with running_fleet(nats, (Profile(MODEL, min_devices=3),)) as fleet:
        await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
        await fleet.add_node(WatchedEngines().start)

        def failed() -> bool:
            return any(
                placed.record.state is ModelState.FAILED
                for placed in fleet.gateway.fleet.placed(MODEL)
            )

        await until(failed, what="the failure")
        (model,) = (await fleet.client.get("/v1/models")).json()["data"]
    assert "4 attention heads" in model["error"]
    assert "one of 1, 2, 4." in model["error"]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_ranks_death_moves_the_stream_and_the_model_comes_back(
    nats: NatsServer, rank: int, how: signal.Signals
) -> None:
    first, second = (WatchedEngines(deadlines=QUICK) for _ in range(2))
    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        await parallel(fleet, first, "n1")
        expected = (await fleet.chat(QUESTION, **PLAIN)).json()["choices"][0]["message"]
        await parallel(fleet, second, "n2")
        for _ in range(TIMES):
            both = [engines.engine for engines in (first, second)]
            assert all(both)
            steps = len(first.steps), len(second.steps)
            task = asyncio.create_task(fleet.chat(QUESTION, **PLAIN))
            await until(lambda s=steps: (len(first.steps), len(second.steps)) > s)  # type: ignore[misc]
            ran = both[0] if len(first.steps) > steps[0] else both[1]
            assert ran is not None
            await asyncio.sleep(0.2)
            os.kill(ran.pids[rank], how)
            answer = (await asyncio.wait_for(task, 60)).json()
            assert answer["choices"][0]["message"] == expected
            assert await ran.died
            for pid in ran.pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
            await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) == 2, seconds=60)
            await until(lambda r=ran: r not in (first.engine, second.engine), seconds=60)  # type: ignore[misc]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
async def test_a_ranks_death_in_the_load_is_tried_again(
    nats: NatsServer, rank: int, how: signal.Signals
) -> None:
    killed: list[int] = []
    # A dead process is seen at once, a frozen one only after as long as a load may be silent.
    deadlines = Deadlines(load_seconds=15.0) if how is signal.SIGSTOP else Deadlines()
    engines = WatchedEngines(deadlines=deadlines)

    async def kill() -> None:
        """The first processes that there are."""
        while not killed:
            pids = rank_processes("neuron.engine")
            if len(pids) == 2:
                os.kill(pids[rank], how)
                killed.append(pids[rank])
            await asyncio.sleep(0.01)

    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        task = asyncio.create_task(kill())
        await parallel(fleet, engines, "n1")
        await task
        assert (await fleet.chat(QUESTION, **PLAIN)).status_code == 200
        assert killed[0] not in rank_processes("neuron.engine")


def listening() -> set[int]:
    """TCP ports of this host that somebody listens at."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == "0A"}


async def test_nothing_is_left_behind(nats: NatsServer) -> None:
    before, shared = listening(), set(os.listdir("/dev/shm"))
    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        await parallel(fleet, WatchedEngines(), "n1")
        assert listening() - before, "the ranks meet at a port"
    assert not rank_processes("neuron.engine")
    await until(lambda: not listening() - before, what="the ports are free")
    assert set(os.listdir("/dev/shm")) <= shared
