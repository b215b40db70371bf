"""The fleet loads what is wanted, in the place of what is not, and nobody notices."""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cortex.placement.options import PlacementOptions
from neuron.ipc.messages import Start
from protocol import keys
from protocol.bus import Bus, KvView
from protocol.catalogue import Profile
from protocol.fleet import ModelState
from tests.support.fleet import TestFleet, running_fleet
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer, words


def profiles(*names: str, **more: Any) -> tuple[Profile, ...]:
    """Models that take 60 MiB each."""
    return tuple(Profile(name, source="cortex-demo", vram_mb=60, **more) for name in names)


def states(fleet: TestFleet, node: str = "n1") -> dict[str, str]:
    return {
        record.model: str(record.state)
        for found in fleet.gateway.fleet.alive()
        if found.name == node
        for record in fleet.gateway.fleet.records_of(found)
    }


async def test_models_take_turns_on_a_node_that_has_room_for_one(nats: NatsServer) -> None:
    script = Script(answer)
    async with running_fleet(nats, profiles("a", "b", "c")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 3)
        for name in "abcab":
            said = await fleet.chat(model=name, max_tokens=5)
            assert said.status_code == 200, said.text
            loaded = [m for m, state in states(fleet).items() if state == "ready"]
            assert loaded == [name]
        assert len(script.engines) == 5
        assert all(engine.died.done() for engine in script.engines[:-1]), "one at a time"


async def test_one_client_waits_for_its_loads_and_for_nobody(nats: NatsServer) -> None:
    script = Script(answer, load_seconds=0.6)
    waits = []
    async with running_fleet(nats, profiles("a", "b", "c")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 3)
        for name in "abcabc":
            began = time.monotonic()
            said = await fleet.chat(model=name, max_tokens=5)
            waits.append(time.monotonic() - began)
            assert said.status_code == 200, said.text
    assert statistics.median(waits) < 1.5, waits


async def test_two_models_asked_for_at_once_take_turns(nats: NatsServer) -> None:
    """One of them is loading when the other one asks for the same place: it waits."""
    script = Script(answer, load_seconds=0.5)
    async with running_fleet(nats, profiles("a", "b", "c")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 3)
        assert (await fleet.chat(model="a", max_tokens=2)).status_code == 200
        for _ in range(2):
            both = [fleet.chat(model=name, max_tokens=2) for name in ("b", "c")]
            answers = await asyncio.gather(*both)
            assert [said.status_code for said in answers] == [200, 200], answers[1].text


async def test_a_model_in_constant_use_and_another_now_and_then(nats: NatsServer) -> None:
    script = Script(answer, load_seconds=0.3)
    statuses: Counter[int] = Counter()
    async with running_fleet(nats, profiles("a", "b")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 2)
        ends = time.monotonic() + 5

        async def loop(model: str, pause: float) -> None:
            while time.monotonic() < ends:
                said = await fleet.chat(model=model, max_tokens=5)
                statuses[said.status_code] += 1
                await asyncio.sleep(pause)

        await asyncio.gather(loop("a", 0.0), loop("b", 2.0))
    assert set(statuses) == {200}, statuses


async def test_many_requests_are_one_load(nats: NatsServer) -> None:
    script = Script(answer, load_seconds=0.5, slots=8)
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(script.start, models=(), memory_mb=100, slots=8)
        await until(lambda: "a" in states(fleet))
        answers = await asyncio.gather(*(fleet.chat(model="a", max_tokens=5) for _ in range(64)))
        assert [said.status_code for said in answers] == [200] * 64
        assert len(script.engines) == 1


async def test_a_stream_is_not_cut_for_another_model(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.02)
    async with (
        running_fleet(nats, profiles("a", "b"), PlacementOptions(place_seconds=8.0)) as fleet,
        http_client() as client,
    ):
        await fleet.add_node(script.start, models=(), memory_mb=100)
        await until(lambda: len(states(fleet)) == 2)
        tape = Tape()
        playing = asyncio.create_task(
            play(client, fleet.url, tape, model="a", seed=1, max_tokens=150)
        )
        await until(lambda: tape.text)
        said = await fleet.chat(model="b", max_tokens=5)
        await playing
        assert tape.text == "".join(words(1, 150))
        assert said.status_code == 200, said.text


@contextlib.asynccontextmanager
async def bucket(fleet: TestFleet, name: str) -> AsyncIterator[Callable[[str], Any]]:
    """What people read in a bucket: the value of a key, or None."""
    view = KvView(fleet.gateway.bus, name, lambda key, value: None)
    task = asyncio.create_task(view.run())
    await view.filled.wait()
    yield lambda key: json.loads(view.get(key) or b"null")
    task.cancel()


async def test_old_engines_are_started_anew_when_they_are_idle(nats: NatsServer) -> None:
    """A hundred loads beside a pinned model, with ``defrag_after_cycles = 50``."""
    script = Script(answer)
    starts: Counter[str] = Counter()

    async def start(start: Start, **more: Any) -> Any:
        starts[start.dtype] += 1
        return await script.start(start, **more)

    pet = Profile("pet", source="cortex-demo", vram_mb=60, pinned_on=("n1",), dtype="float32")
    listed = (pet, *profiles("a", "b"))
    async with running_fleet(nats, listed, PlacementOptions(defrag_after_cycles=50)) as fleet:
        await fleet.add_node(start, models=(), memory_mb=150)
        await fleet.ready("pet")
        for cycle in range(100):
            names = ["ab"[cycle % 2], *(["pet"] if cycle % 3 == 0 else [])]
            said = [fleet.chat(model=name, max_tokens=2) for name in names]
            for one in await asyncio.gather(*said):
                assert one.status_code == 200, one.text
        assert starts["auto"] == 100
        await until(lambda: starts["float32"] == 3)
        assert (await fleet.chat(model="pet", max_tokens=2)).status_code == 200
        await asyncio.sleep(1.5)
        assert starts["float32"] == 3, "twice, and no more"
        exposed = fleet.gateway.metrics.exposition().decode()
        assert 'cortex_placer_orders_total{order="load"} 101.0' in exposed
        assert 'cortex_placer_orders_total{order="evict"} 99.0' in exposed
        assert 'cortex_placer_orders_total{order="recycle"} 2.0' in exposed


async def test_the_order_of_eviction_is_written(nats: NatsServer) -> None:
    script = Script(answer)
    async with (
        running_fleet(nats, profiles("a", "b", "c")) as fleet,
        bucket(fleet, keys.EVICTION) as order,
        bucket(fleet, keys.PLACEMENT) as placement,
    ):
        await fleet.add_node(script.start, models=(), memory_mb=150)
        await until(lambda: len(states(fleet)) == 3)
        for name in "ab":
            assert (await fleet.chat(model=name, max_tokens=5)).status_code == 200
        first = [{"model": "a", "why": "lru"}, {"model": "b", "why": "lru"}]
        await until(lambda: (order("n1") or {}).get("turns") == first)
        assert (await fleet.chat(model="c", max_tokens=5)).status_code == 200
        assert states(fleet)["a"] == ModelState.ABSENT
        await until(lambda: placement("node.n1.c"))
        assert placement("node.n1.c")["victims"] == ["a"]
        await until(lambda: not placement("node.n1.a"))
        first[0]["model"], first[1]["model"] = "b", "c"
        await until(lambda: order("n1")["turns"] == first)


async def test_a_node_that_is_silent_for_a_moment_is_waited_for(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only one that could load the model."""
    deaf: set[str] = set()
    publish = Bus.publish

    async def partly(bus: Bus, subject: str, data: bytes, **options: Any) -> None:
        if bus.name not in deaf:
            await publish(bus, subject, data, **options)

    monkeypatch.setattr(Bus, "publish", partly)
    async with running_fleet(nats, profiles("a")) as fleet:
        await fleet.add_node(Script(answer).start, models=(), memory_mb=100)
        await until(lambda: "a" in states(fleet))
        deaf.add("n1")
        await until(lambda: not states(fleet))
        asking = asyncio.create_task(fleet.chat(model="a", max_tokens=2))
        await asyncio.sleep(0.5)
        assert not asking.done()
        deaf.clear()
        assert (await asking).status_code == 200
