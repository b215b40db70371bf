"""A model over two ranks, through the whole fleet: it answers as on one."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cortex.telemetry.request_record import Continuity, Record
from neuron.engine_process.watchdog import Deadlines
from neuron.files import locked_pages
from protocol.catalogue import Profile
from protocol.fleet import ModelState
from protocol.orders import RecycleOrder
from tests.support.fleet import MODEL, TestFleet, running_fleet, sse_events
from tests.support.nats import NatsServer
from tests.support.ranks import rank_processes
from tests.support.waiting import until
from tests.support.watched import WatchedEngines

QUESTION = "What is 17 + 25?"
PLAIN: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
LONG = PLAIN | {"max_tokens": 200}


async def parallel(fleet: TestFleet, engines: WatchedEngines, name: str) -> None:
    """Another node with the model over two ranks."""
    await until(lambda: MODEL in fleet.gateway.catalogue.models, what="the profile")
    before = len(fleet.gateway.fleet.ready(MODEL))
    await fleet.add_node(engines.start, name=name)
    await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) > before, seconds=60)


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


async def test_an_answer_goes_on_on_nodes_with_other_numbers_of_ranks(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two ranks to one, and back to two. They round differently, so that it is not exact; what
    was sent stays, and here all of it is the same."""
    records: list[Record] = []
    monkeypatch.setattr(
        "cortex.telemetry.metrics.Metrics._count_tokens",
        lambda self, record: records.append(record),
    )
    patient = Deadlines(stopped_seconds=60.0)  # until it is killed below
    two = WatchedEngines(deadlines=patient)
    one = WatchedEngines(devices=(), deadlines=patient)
    text = ""
    async with running_fleet(nats, (Profile(MODEL, min_devices=2),)) as fleet:
        await parallel(fleet, two, "two")
        assert len(two.alive.pids) == 2
        (placed,) = fleet.gateway.fleet.placed(MODEL)
        assert placed.record.estimate is not None
        assert placed.record.estimate.devices == 1, "on a CPU they share it"
        assert any("2 ranks" in line for line in placed.record.estimate.lines)
        expected = (await fleet.chat(QUESTION, **LONG)).json()["choices"][0]["message"]
        async with fleet.streaming(QUESTION, **LONG) as answer:
            events = sse_events(answer)
            text += await more_text(events)
            os.kill(left := two.alive.pid, signal.SIGSTOP)
            await parallel(fleet, one, "one")
            os.kill(left, signal.SIGKILL)
            while not one.steps:
                text += await more_text(events)
            os.kill(left := one.alive.pid, signal.SIGSTOP)
            await until(lambda: len(fleet.gateway.fleet.ready(MODEL)) == 2, seconds=60)
            os.kill(left, signal.SIGKILL)
            text += await more_text(events, until_the_end=True)
        assert len(one.alive.pids) == 1
        assert text == expected["content"]
        await until(lambda: records and records[-1].moves == 2)
        assert records[-1].continuity is Continuity.CONTINUED


async def more_text(events: AsyncIterator[dict[str, Any]], *, until_the_end: bool = False) -> str:
    """The next piece of an answer, or all that is left of it."""
    text = ""
    async for event in events:
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
        if text and not until_the_end:
            break
    return text


def shared(*names: str) -> tuple[Profile, ...]:
    """Models of two ranks that take 1,000 MiB each."""
    return tuple(Profile(n, source=MODEL, vram_mb=1000, min_devices=2) for n in names)


async def test_two_groups_on_one_host(nats: NatsServer) -> None:
    async with running_fleet(nats, shared("a", "b")) as fleet:
        await fleet.add_node(WatchedEngines().start, models=(), memory_mb=2500)
        await until(lambda: fleet.gateway.fleet.models() == ["a", "b"])
        fleet.client.timeout = 60
        answers = await asyncio.gather(
            *(fleet.chat(QUESTION, model=name, **PLAIN) for name in "abab")
        )
        assert len(rank_processes("neuron.engine")) == 4
    assert len({str(said.json()["choices"]) for said in answers}) == 1, "and the same"


async def test_several_ranks_are_evicted_kept_warm_and_started_anew(nats: NatsServer) -> None:
    async with running_fleet(nats, shared("a", "b")) as fleet:
        warm = 64 if locked_pages.may_lock(64 << 20) else 0
        node = await fleet.add_node(
            WatchedEngines().start, models=(), memory_mb=1500, host_cache_mb=warm
        )
        await until(lambda: fleet.gateway.fleet.models() == ["a", "b"])
        fleet.client.timeout = 60
        answers, groups = [], []
        for name in "aba":
            ordered = await fleet.client.post("/models/load", json={"model": name})
            assert ordered.status_code == 202, ordered.text
            answers.append(await fleet.chat(QUESTION, model=name, **PLAIN))
            groups.append(set(rank_processes("neuron.engine")))
            gone = "b" if name == "a" else "a"
            if warm and len(groups) > 1:
                await until(lambda m=gone: is_warm(fleet, m))  # type: ignore[misc]
        node.residents.recycle(RecycleOrder("a"))
        answers.append(await fleet.chat(QUESTION, model="a", **PLAIN))
        groups.append(set(rank_processes("neuron.engine")))
    assert all(len(group) == 2 for group in groups), "of one model at a time"
    assert len(set.union(*groups)) == 8
    assert len({str(said.json()["choices"]) for said in answers}) == 1


def is_warm(fleet: TestFleet, model: str) -> bool:
    (record,) = fleet.gateway.fleet.records(model)
    return record.is_warm
