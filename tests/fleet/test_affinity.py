"""A conversation goes back to the node that knows it; it neither waits for it nor overtakes."""

import asyncio
import time
from typing import Any

import pytest

from cortex.dispatch.prefix_affinity import MIN_CHARACTERS
from protocol.bus import BusMessage
from tests.support.fleet import MODEL, TestFleet, running_fleet, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

pytestmark = pytest.mark.xdist_group("wall_clock")

SYSTEM = {"role": "system", "content": "y" * MIN_CHARACTERS}


class Conversation:
    """One client's turns."""

    def __init__(self, name: str) -> None:
        self.messages: list[dict[str, Any]] = [SYSTEM]
        self.name = name

    async def turn(self, fleet: TestFleet, **body: Any) -> None:
        """The next question, and its answer."""
        self.messages.append({"role": "user", "content": f"{self.name} {len(self.messages)}"})
        body = {"max_tokens": 5, **body, "messages": self.messages}
        answered = await fleet.chat(**body)
        assert answered.status_code == 200, answered.text
        self.messages.append(answered.json()["choices"][0]["message"])


def offers(fleet: TestFleet) -> tuple[int, int]:
    """How many were taken and refused."""
    counts = []
    for outcome in ("taken", "refused"):
        name = f'cortex_prefix_offers_total{{outcome="{outcome}"}} '
        lines = fleet.gateway.metrics.exposition().decode().splitlines()
        counts.append(int(float(next(x for x in lines if x.startswith(name)).split()[1])))
    return counts[0], counts[1]


async def test_every_turn_goes_to_the_same_node(nats: NatsServer) -> None:
    script = Script(answer)
    async with scripted_fleet(nats, script, nodes=3) as fleet:
        one = Conversation("one")
        for _ in range(6):
            await one.turn(fleet)
        assert sorted(len(engine.steps_of) for engine in script.engines) == [0, 0, 6]
        await until(lambda: offers(fleet) == (5, 0))


async def test_a_busy_node_is_not_waited_for(nats: NatsServer) -> None:
    script = Script(answer, slots=1, step_seconds=0.005)
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        one, other = Conversation("one"), Conversation("other")
        await one.turn(fleet)
        running = asyncio.create_task(one.turn(fleet, max_tokens=400))
        await until(lambda: any(engine.open for engine in script.engines))
        await asyncio.sleep(0.6)  # the heartbeat says so
        began = time.monotonic()
        await other.turn(fleet)
        assert time.monotonic() - began < 1.0
        assert not running.done()
        await running
        assert all(engine.steps_of for engine in script.engines)


async def test_a_node_that_does_not_answer_costs_a_moment(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(worker: object, message: BusMessage) -> None:
        pass

    monkeypatch.setattr("neuron.service.jobs.worker.Worker._asked_directly", deaf)
    async with scripted_fleet(nats, Script(answer), nodes=2) as fleet:
        one = Conversation("one")
        await one.turn(fleet)
        began = time.monotonic()
        await one.turn(fleet)
        assert 0.25 < time.monotonic() - began < 1.0
        await until(lambda: offers(fleet) == (0, 1))


async def test_what_waits_in_the_stream_is_not_overtaken(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway's jobs, as seen by the neuron: its pull is answered at once, never idle."""
    monkeypatch.setattr("protocol.bus.jobs.JobPuller.is_idle", lambda puller, priority: False)
    async with scripted_fleet(nats, Script(answer), nodes=2) as fleet:
        one = Conversation("one")
        await one.turn(fleet)
        await one.turn(fleet)
        await until(lambda: offers(fleet) == (0, 1))


async def test_a_much_slower_node_does_not_keep_a_conversation(nats: NatsServer) -> None:
    slow, quick = Script(answer, step_seconds=0.05), Script(answer, step_seconds=0.004)
    async with running_fleet(nats) as fleet:
        await fleet.add_node(slow.start, name="slow")
        await fleet.ready()
        one = Conversation("one")
        await one.turn(fleet)
        await fleet.add_node(quick.start, name="quick")
        await fleet.ready(nodes=2)
        await until(lambda: _says_its_pace(fleet, "slow"))
        while not _says_its_pace(fleet, "quick"):  # it has pulls of the best priority
            await fleet.chat(max_tokens=3)
        before = len(slow.engines[0].steps_of)
        await one.turn(fleet)
        assert len(slow.engines[0].steps_of) == before
        await until(lambda: offers(fleet) == (0, 0))


def _says_its_pace(fleet: TestFleet, node: str) -> bool:
    ready = fleet.gateway.fleet.ready(MODEL)
    return any(p.load.step_seconds for p in ready if p.record.node == node)
