"""How many replicas there are, for how long, and who makes room for whom."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cortex.fleet.state import Fleet
from cortex.placement.eviction import Strategy
from cortex.placement.options import PlacementOptions
from neuron import demo_model
from neuron.engine_process.client import EngineLoadError
from neuron.ipc.messages import Start
from neuron.service.residents.resident import Resident
from protocol import keys
from protocol.bus import KvBucket
from protocol.catalogue import Profile
from protocol.fleet import ModelState
from protocol.timing import NORMAL
from tests.fleet.test_placing import bucket, profiles, states
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

(DEMO,) = demo_model.__path__


def replicas(fleet: TestFleet, model: str = "a") -> int:
    return len(fleet.gateway.fleet.ready(model))


def turns_of(order: dict[str, Any] | None) -> list[str]:
    """The models of an eviction order while none of them is in use."""
    turns = order["turns"] if order else []
    return [] if any(turn["why"] == "in use" for turn in turns) else [t["model"] for t in turns]


async def two_nodes(fleet: TestFleet, script: Script, memory_mb: int = 100) -> None:
    for name in ("n1", "n2"):
        await fleet.add_node(
            script.start, name=name, models=(), slots=script.slots, memory_mb=memory_mb
        )
    await until(lambda: all("a" in states(fleet, name) for name in ("n1", "n2")))


@pytest.fixture
def soon_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds instead of five are long for a request to wait."""
    monkeypatch.setattr("cortex.placement.planner.CROWDED_SECONDS", 2.0)


@pytest.mark.usefixtures("soon_crowded")
async def test_a_model_whose_requests_keep_waiting_gets_another_replica(nats: NatsServer) -> None:
    script = Script(answer, slots=1, step_seconds=0.02)
    async with running_fleet(nats, profiles("a", max_replicas=2)) as fleet:
        await two_nodes(fleet, script)
        asked = [
            asyncio.create_task(fleet.chat(str(n), model="a", max_tokens=100)) for n in range(4)
        ]
        await until(lambda: replicas(fleet) == 1)
        began = time.monotonic()
        await until(lambda: replicas(fleet) == 2, seconds=20)
        assert time.monotonic() - began > 1.0, "not before they have waited"
        assert [said.status_code for said in await asyncio.gather(*asked)] == [200] * 4
        assert len(script.engines) == 2


@pytest.mark.usefixtures("soon_crowded")
async def test_one_replica_is_enough_without_leave(nats: NatsServer) -> None:
    script = Script(answer, slots=1, step_seconds=0.02)
    async with running_fleet(nats, profiles("a")) as fleet:
        await two_nodes(fleet, script)
        asked = [fleet.chat(str(n), model="a", max_tokens=50) for n in range(4)]
        assert [said.status_code for said in await asyncio.gather(*asked)] == [200] * 4
        assert len(script.engines) == 1


async def test_a_node_that_has_not_said_what_it_is_is_waited_for(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node writes what it can in whatever order NATS takes it."""
    put = KvBucket.put
    is_let_through = asyncio.Event()

    async def late(bucket: KvBucket, key: str, value: bytes, **options: Any) -> bool:
        if key == keys.node_info("n1") and not is_let_through.is_set():
            return False
        return await put(bucket, key, value, **options)

    monkeypatch.setattr(KvBucket, "put", late)
    monkeypatch.setattr(Fleet, "described", lambda fleet, said: None)  # it would help
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(Script(answer).start, models=(), memory_mb=100)
        await until(lambda: "a" in states(fleet))
        await asyncio.sleep(NORMAL.all_heard_seconds)
        asked = asyncio.create_task(fleet.chat(model="a", max_tokens=5))
        await asyncio.sleep(0.5)
        assert not asked.done()
        is_let_through.set()
        assert (await asked).status_code == 200


async def test_a_minimum_is_there_before_anybody_asks_and_comes_back(nats: NatsServer) -> None:
    script = Script(answer)
    kept = profiles("a", min_replicas=2, max_replicas=2)
    async with running_fleet(nats, (*kept, *profiles("b"))) as fleet:
        await two_nodes(fleet, script)
        await until(lambda: replicas(fleet) == 2)
        refused = await fleet.chat(model="b", max_tokens=5)
        assert refused.status_code == 503, "a minimum is not given up for others"
        assert "a 60 MiB" in refused.json()["error"]["message"]
        script.engines[0]._die("it was shot")
        await until(lambda: replicas(fleet) == 1)
        await until(lambda: replicas(fleet) == 2)


async def test_what_nobody_uses_goes_after_its_time(nats: NatsServer) -> None:
    script = Script(answer)
    brief = profiles("a", idle_seconds=1.0)
    async with running_fleet(nats, (*brief, *profiles("b"))) as fleet:
        await two_nodes(fleet, script)
        for model in "ab":
            assert (await fleet.chat(model=model, max_tokens=2)).status_code == 200
        await until(lambda: replicas(fleet) == 0, seconds=10)
        assert replicas(fleet, "b") == 1
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200, "and comes again"


@pytest.mark.parametrize(
    ("strategy", "turns"),
    [(Strategy.PRIORITY, ["low", "high"]), (Strategy.LRU, ["high", "low"])],
)
async def test_by_priority_the_lowest_class_goes_first(
    nats: NatsServer, strategy: Strategy, turns: list[str]
) -> None:
    listed = (*profiles("low", residency_priority=50), *profiles("high", "new"))
    async with (
        running_fleet(nats, listed, PlacementOptions(strategy=strategy)) as fleet,
        bucket(fleet, keys.EVICTION) as order,
    ):
        await fleet.add_node(Script(answer).start, models=(), memory_mb=150)
        await until(lambda: len(states(fleet)) == 3)
        for model in ("high", "low"):
            said = await fleet.chat(model=model, max_tokens=2)
            assert said.status_code == 200, said.text
        await until(lambda: turns_of(order("n1")) == turns)
        assert (await fleet.chat(model="new", max_tokens=2)).status_code == 200
        assert states(fleet)[turns[0]] == "absent"
        assert states(fleet)[turns[1]] == "ready"


@pytest.mark.xdist_group("wall_clock")
async def test_a_higher_class_makes_no_room(nats: NatsServer) -> None:
    listed = (*profiles("low", residency_priority=50), *profiles("high"))
    async with running_fleet(nats, listed) as fleet:
        await fleet.add_node(Script(answer).start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 2)
        assert (await fleet.chat(model="high", max_tokens=2)).status_code == 200
        began = time.monotonic()
        refused = await fleet.chat(model="low", max_tokens=2)
        assert refused.status_code == 503
        assert time.monotonic() - began < 2.0
        assert "high 60 MiB" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"]


async def test_a_model_that_cannot_be_loaded_is_refused_and_others_are_served(
    nats: NatsServer,
) -> None:
    script, broken = Script(answer), Script(answer)
    broken.load_error = EngineLoadError("out_of_memory", "cpu ran out of memory: 3 of 2 GiB")

    async def start(start: Start, **more: Any) -> Any:
        return await (broken if start.dtype == "float32" else script).start(start, **more)

    listed = (Profile("bad", source="cortex-demo", vram_mb=30, dtype="float32"), *profiles("good"))
    async with running_fleet(nats, listed) as fleet:
        await fleet.add_node(start, models=(), memory_mb=150)
        await until(lambda: len(states(fleet)) == 2)
        refused = await fleet.chat(model="bad", max_tokens=2)
        assert refused.status_code == 503
        assert "ran out of memory: 3 of 2 GiB" in refused.json()["error"]["message"]
        assert (await fleet.chat(model="good", max_tokens=2)).status_code == 200
        pauses = []
        for _ in range(2):
            await until(lambda: states(fleet)["bad"] == ModelState.ABSENT)
            await fleet.chat(model="bad", max_tokens=2)
            (record,) = fleet.gateway.fleet.records("bad")
            pauses.append(record.retry_seconds)
        assert pauses == [2.0, 4.0], "longer and longer"
        broken.load_error = None
        await until(lambda: states(fleet)["bad"] == ModelState.ABSENT, seconds=10)
        assert (await fleet.chat(model="bad", max_tokens=2)).status_code == 200


async def test_a_model_that_cannot_work_is_tried_less_and_less_often(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is asked for; an operator's load begins anew."""
    monkeypatch.setattr("neuron.service.residents.resident._HOPELESS_PAUSE_SECONDS", 0.1)
    pauses: list[float] = []
    fail = Resident._fail

    def noted(self: Resident, why: str, retry_seconds: float) -> None:
        pauses.append(retry_seconds)
        fail(self, why, retry_seconds)

    monkeypatch.setattr(Resident, "_fail", noted)
    script = Script(answer)
    script.load_error = EngineLoadError("corrupt", "its logits are not numbers")
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: "a" in states(fleet))
        for tries in (2, 4):
            while len(pauses) < tries:
                assert (await fleet.chat(model="a", max_tokens=2)).status_code == 503
            told = await fleet.client.post("/models/unload", json={"model": "a"})
            assert told.status_code in (202, 404), "it may have ended"
        while 0.1 not in pauses[4:]:  # a try of the placer's may be under way
            await fleet.client.post("/models/load", json={"model": "a"})
            await asyncio.sleep(0.2)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8], "an unload counts no failure of its own"


async def test_a_load_whose_process_dies_is_tried_again(nats: NatsServer) -> None:
    """Nobody who waits for the model notices, unless it dies every time."""
    script, deaths = Script(answer), 2

    async def start(start: Start, **more: Any) -> Any:
        nonlocal deaths
        deaths -= 1
        script.load_error = EngineLoadError("crashed", "signal SIGKILL") if deaths >= 0 else None
        return await script.start(start, **more)

    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(start, models=(), memory_mb=150)
        await until(lambda: states(fleet) == {"a": ModelState.ABSENT})
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        assert deaths == -1
        await fleet.client.post("/models/unload", json={"model": "a"})
        await until(lambda: states(fleet) == {"a": ModelState.ABSENT})
        deaths = 3
        refused = await fleet.chat(model="a", max_tokens=2)
        assert refused.status_code == 503
        assert "signal SIGKILL" in refused.json()["error"]["message"]


async def test_what_has_room_is_loaded_side_by_side(nats: NatsServer) -> None:
    script = Script(answer, load_seconds=0.8)
    async with running_fleet(nats, profiles("a", "b", "c")) as fleet:
        await fleet.add_node(script.start, models=(), slots=script.slots, memory_mb=200)
        await until(lambda: set("abc") <= set(states(fleet)))
        began = time.monotonic()
        asked = [fleet.chat(model=model, max_tokens=5) for model in "abc"]
        assert [said.status_code for said in await asyncio.gather(*asked)] == [200] * 3
        assert time.monotonic() - began < 0.8 * 2, "one after the other takes three times as long"


class SometimesBroken(Script):
    """Whose model *b* cannot work."""

    async def start(self, start: Start, **more: Any) -> Any:
        self.load_error = None
        if start.model_dir.endswith("/b"):
            self.load_error = EngineLoadError("corrupt", "The model computes NaN.")
        return await super().start(start, **more)


async def test_a_model_that_cannot_work_takes_the_place_of_one_that_works_once(
    nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuron.service.residents.resident._HOPELESS_PAUSE_SECONDS", 0.3)
    for model in "ab":
        shutil.copytree(DEMO, tmp_path / model)
    script = SometimesBroken(answer)
    async with running_fleet(nats) as fleet:
        await fleet.add_node(
            script.start, models=(), slots=4, memory_mb=300, model_dirs=(str(tmp_path),)
        )
        await until(lambda: set("ab") <= set(states(fleet)))
        assert (await fleet.chat(model="a", max_tokens=5)).status_code == 200
        assert (await fleet.chat(model="b", max_tokens=5)).status_code == 503
        assert (await fleet.chat(model="a", max_tokens=5)).status_code == 200
        loads = fleet.gateway.placement.placer.ordered["load"]
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            refused = await fleet.chat(model="b", max_tokens=5)
            assert refused.status_code == 503
            await asyncio.sleep(0.1)
        assert "no other model goes for it" in refused.json()["error"]["message"]
        assert fleet.gateway.placement.placer.ordered["load"] == loads, "it was not loaded again"
        assert fleet.gateway.fleet.ready("a")
        (tmp_path / "b" / "a.json").write_text("{}")  # whatever it is, it is another folder now
        await until(lambda: not fleet.gateway.fleet.records("b")[0].failed_before)
        assert (await fleet.chat(model="b", max_tokens=5)).status_code == 503
        assert not fleet.gateway.fleet.ready("a"), "it was worth another try"
