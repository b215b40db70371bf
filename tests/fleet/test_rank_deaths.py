"""Whichever rank of a model dies or freezes, and whenever: the answer is the undisturbed one, the
model comes back, and nothing is left behind. ``DEATHS`` says how often each."""

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from neuron.engine_process.client import EngineProcess
from neuron.engine_process.sequence_stream import SequenceStream
from neuron.engine_process.watchdog import Deadlines
from neuron.ipc.messages import Add, Loading, Start
from protocol.catalogue import Profile
from tests.support.fleet import MODEL, TestFleet, running_fleet
from tests.support.matrix import RUNS
from tests.support.nats import NatsServer, running_nats
from tests.support.ranks import rank_processes
from tests.support.waiting import until
from tests.support.watched import WatchedEngines

QUESTION = "What is 17 + 25?"
PLAIN: dict[str, Any] = {"temperature": 0, "max_tokens": 120, "ignore_eos": True}
QUICK = Deadlines(load_seconds=15.0, first_step_seconds=3.0, step_seconds=3.0)
"""A load says nothing while torch is imported, which takes seconds on a busy machine."""
SHARED = (Profile(MODEL, min_devices=2),)

every_rank = pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
"""Rank 0's death is that of any engine; the others' is not."""
either_way = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
pytestmark = [
    pytest.mark.timeout(60 + 60 * RUNS),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("rank_deaths"),
]


def ports(pids: Iterable[int]) -> set[str]:
    """TCP ports that these processes listen at."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {row[1] for row in rows if row[3] == "0A" and row[9] in sockets}


def is_free(address: str) -> bool:
    """Whether another program may listen at a port of loopback."""
    try:
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2], 16))).close()
    except OSError:
        return False
    return True


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """No process, no shared memory, no descriptor of ours."""
    shared, open_files = set(os.listdir("/dev/shm")), len(os.listdir("/dev/fd"))
    before = len(rank_processes("neuron.engine"))
    yield
    assert len(rank_processes("neuron.engine")) == before
    assert set(os.listdir("/dev/shm")) <= shared
    assert len(os.listdir("/dev/fd")) <= open_files + 2  # the loop's


@pytest.fixture(autouse=True)
def quick_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that ends again and again is started again after ever longer pauses."""
    monkeypatch.setattr("neuron.service.residents.resident._LONGEST_PAUSE_SECONDS", 1.0)


class MortalEngines(WatchedEngines):
    """Whose ranks die when the test wants it: *at_load* and *at_add* are given the processes."""

    def __init__(self) -> None:
        super().__init__(deadlines=QUICK)
        self.at_load: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.at_add: Callable[[tuple[int, ...]], None] | None = None

    async def start(self, start: Start, *, on_progress: Callable[[Loading], None]) -> EngineProcess:
        """A death of the first load is over before the second one begins."""
        dying = asyncio.create_task(self.at_load()) if self.at_load else None
        self.at_load = None
        try:
            engine = await super().start(start, on_progress=on_progress)
        finally:
            if dying is not None:
                await dying
        start_generation = engine.add

        async def and_die(add: Add) -> SequenceStream:
            if self.at_add is not None:
                self.at_add(engine.pids)  # just before, or the first step may be over
            self.at_add = None
            return await start_generation(add)

        engine.add = and_die  # type: ignore[method-assign]
        return engine


class OneNode(NamedTuple):
    """A fleet of one node, its engines, and the undisturbed answer."""

    fleet: TestFleet
    engines: MortalEngines
    expected: dict[str, Any]


async def shared_model(fleet: TestFleet, *nodes: MortalEngines) -> dict[str, Any]:
    """Nodes that have it; returns the undisturbed answer."""
    await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
    for number, engines in enumerate(nodes, 1):
        await fleet.add_node(engines.start, name=f"n{number}", drain_seconds=0)
    await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) == len(nodes), seconds=60)
    fleet.client.timeout = 90
    return await answer(fleet)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OneNode]:
    """For tests that leave the model ready: it takes seconds to load."""
    engines = MortalEngines()
    with running_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with running_fleet(nats, SHARED) as fleet:
            yield OneNode(fleet, engines, await shared_model(fleet, engines))


async def answer(fleet: TestFleet) -> dict[str, Any]:
    said = await fleet.chat(QUESTION, **PLAIN)
    assert said.status_code == 200, said.text
    message: dict[str, Any] = said.json()["choices"][0]["message"]
    return message


def are_gone(pids: Iterable[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@every_rank
async def test_in_mid_answer(nats: NatsServer, rank: int) -> None:
    """It goes on where the model is too."""
    nodes = MortalEngines(), MortalEngines()
    async with running_fleet(nats, SHARED) as fleet:
        expected = await shared_model(fleet, *nodes)
        for how in (signal.SIGKILL, signal.SIGSTOP) * RUNS:
            await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) == 2, seconds=60)
            before = [len(node.steps) for node in nodes]
            task = asyncio.create_task(answer(fleet))
            await until(lambda b=before: [len(n.steps) for n in nodes] != b)  # type: ignore[misc]
            (node,) = (n for n, b in zip(nodes, before, strict=True) if len(n.steps) > b)
            engine = node.alive
            await asyncio.sleep(random.uniform(0, 0.3))
            assert not task.done(), "too late"
            os.kill(engine.pids[rank], how)
            assert await task == expected
            await engine.died
            assert are_gone(engine.pids)


@every_rank
@either_way
async def test_in_the_first_step(one_node: OneNode, rank: int, how: signal.Signals) -> None:
    """Of a request that only this node could answer: it waits until the model is back."""
    fleet, engines, expected = one_node
    for _ in range(RUNS):
        engine = engines.alive
        steps = len(engines.steps)
        engines.at_add = lambda pids: os.kill(pids[rank], how)
        assert await answer(fleet) == expected
        assert are_gone(engine.pids)
        assert engines.engine is not engine
        assert engines.steps[steps].step.number == 1, "the old one has not done a step"


@every_rank
async def test_at_rest(one_node: OneNode, rank: int) -> None:
    """A death is noticed at once; whoever is frozen does not keep the model from being unloaded."""
    fleet, engines, expected = one_node
    for _ in range(RUNS):
        engine = engines.alive
        os.kill(engine.pids[rank], signal.SIGKILL)
        await asyncio.wait_for(engine.died, 1)
        assert await answer(fleet) == expected
        engine = engines.alive
        os.kill(engine.pids[rank], signal.SIGSTOP)
        await fleet.client.post("/models/unload", json={"model": MODEL})
        await until(lambda e=engine: are_gone(e.pids), seconds=10)  # type: ignore[misc]
        assert await answer(fleet) == expected, "loaded for it"


@every_rank
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
async def test_in_the_load(one_node: OneNode, rank: int, how: signal.Signals) -> None:
    """At any moment of it; the request that wants the model waits for another load. The ranks meet
    at a port of loopback, which ends with them."""
    fleet, engines, expected = one_node
    victims: list[int] = []

    async def kill() -> None:
        await until(lambda: len(rank_processes("neuron.engine")) == 2)
        pids = rank_processes("neuron.engine")
        await asyncio.sleep(random.uniform(0, seconds))
        os.kill(pids[rank], how)
        victims.append(pids[rank])

    (placed,) = fleet.gateway.fleet.ready(MODEL)
    seconds = placed.record.load_seconds
    for _ in range(RUNS):
        met = ports(rank_processes("neuron.engine"))
        assert met
        assert all(address.startswith("0100007F:") for address in met)
        said = await fleet.client.post("/models/unload", json={"model": MODEL})
        assert said.status_code == 202, said.text
        await until(lambda: not rank_processes("neuron.engine"))
        await until(lambda addresses=met: all(map(is_free, addresses)))  # type: ignore[misc]
        engines.at_load = kill
        assert await answer(fleet) == expected
        assert are_gone(victims)
    assert len(victims) == RUNS
