"""A client may leave at any moment: the work for it ends at once, and nothing is left behind."""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from neuron import demo_model
from protocol.timing import NORMAL
from tests.support.fleet import TestFleet, chat_body, running_fleet, scripted_fleet
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer
from tests.support.processes import http_client
from tests.support.scripted import Script
from tests.support.waiting import seconds_until, settled, until

pytestmark = pytest.mark.xdist_group("wall_clock")

LEAVERS = 1000
STEP_SECONDS = 0.005
LIMIT_SECONDS = STEP_SECONDS + 0.05
(DEMO,) = demo_model.__path__


async def ask(client: httpx2.AsyncClient, url: str, **body: Any) -> None:
    """Reads an answer to its end, whatever it is."""
    sent = chat_body("Hi", **body)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=sent) as answer:
        async for _ in answer.aiter_raw():
            pass


@pytest.mark.parametrize("phase", ["decode", "decode, not streaming", "prefill"])
async def test_the_engine_stops_when_the_client_has_left(nats: NatsServer, phase: str) -> None:
    prefill = 10_000 if phase == "prefill" else 1
    script = Script(lambda add: ["x"] * 10_000, step_seconds=STEP_SECONDS, prefill_steps=prefill)
    script.context = 20_000
    seconds = []
    async with scripted_fleet(nats, script) as fleet:
        (engine,) = script.engines
        for _ in range(RUNS):
            before = engine.steps_of.total()
            async with leaving(fleet, stream="not" not in phase):
                await until(lambda n=before: engine.steps_of.total() > n + 5)  # type: ignore[misc]
            seconds.append(await seconds_until(lambda: engine.open == 0))
            await until(lambda: fleet.gateway.dispatcher.in_flight == 0)
    report(f"a client leaves ({phase}): its engine stops", seconds, LIMIT_SECONDS)


@contextlib.asynccontextmanager
async def leaving(fleet: TestFleet, **body: Any) -> AsyncIterator[None]:
    """A client that is gone at the end of the block."""
    async with http_client() as client:
        task = asyncio.create_task(ask(client, fleet.url, **body))
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("phase", ["queued", "loading"])
async def test_the_place_in_the_line_is_free_when_the_client_has_left(
    nats: NatsServer, phase: str
) -> None:
    script = Script(lambda add: ["x"] * 100_000, slots=1, step_seconds=STEP_SECONDS)
    script.load_seconds = 1000.0 if phase == "loading" else 0.0
    seconds = []
    async with running_fleet(nats) as fleet, http_client() as client:
        await fleet.add_node(script.start, slots=1)
        await until(fleet.gateway.fleet.models)
        if phase == "queued":
            await fleet.ready()
        dispatcher = fleet.gateway.dispatcher
        others = [asyncio.create_task(ask(client, fleet.url, stream=True)) for _ in range(4)]
        await until(lambda: dispatcher.waiting + dispatcher.in_flight == len(others))
        before = await settled(lambda: dispatcher.waiting)
        for _ in range(RUNS):
            async with leaving(fleet, stream=True):
                await until(lambda: dispatcher.waiting == before + 1)
            seconds.append(await seconds_until(lambda: dispatcher.waiting == before))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await until(lambda: dispatcher.waiting == dispatcher.in_flight == 0)
    report(f"a client leaves ({phase}): its place is free", seconds, LIMIT_SECONDS)


FORGETFUL = dataclasses.replace(NORMAL, cut_off_seconds=1.9, kept_seconds=2.0)
"""Nothing is kept for long, so that what is left over shows."""


async def test_a_thousand_clients_that_leave_in_every_phase(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting, loading, handed over, prefill, decode, while it moves, and after the end; engines
    die meanwhile."""
    monkeypatch.setattr("cortex.serve.IDLE_CONNECTION_SECONDS", 1.0)
    chance = random.Random(1)
    script = Script(lambda add: ["x"] * 40, slots=4, step_seconds=0.004, prefill_steps=5)
    async with scripted_fleet(nats, script, nodes=2, timing=FORGETFUL) as fleet:
        never = Script(load_seconds=1000.0)
        await fleet.add_node(never.start, name="n9", models=(f"never={DEMO}",))
        await until(lambda: "never" in fleet.gateway.fleet.models())
        await fleet.chat()
        await leave_in_turn(fleet, chance, 20, script)  # what is made once, is made
        await until(lambda: fleet.is_idle(script))
        await asyncio.sleep(2.0)
        before = await census(fleet)
        left = await leave_in_turn(fleet, chance, LEAVERS, script)
        assert left > 0.6 * LEAVERS, "most were too late to leave"
        await until(lambda: fleet.is_idle(script))
        await until(lambda: is_as(fleet, before), seconds=15, what=f"as before: {before}")
        assert (await fleet.chat()).status_code == 200


async def leave_in_turn(fleet: TestFleet, chance: random.Random, count: int, script: Script) -> int:
    """*count* clients, forty at a time, of whom most leave; returns how many did."""
    gate = asyncio.Semaphore(40)
    left = 0

    async def visit(number: int) -> None:
        nonlocal left
        model = "never" if number % 5 == 0 else "cortex-demo"
        patience = chance.choice((0.0, 0.01, 0.05, 0.2, 0.4)) * (0.5 + chance.random())
        async with gate:
            if number % 100 == 50:
                max(script.engines, key=lambda engine: engine.open).crash()
            try:
                async with asyncio.timeout(patience):
                    await ask(client, fleet.url, model=model, stream=number % 2 == 0)
            except TimeoutError:
                left += 1

    async with http_client() as client:
        await asyncio.gather(*(visit(number) for number in range(count)))
    return left


async def census(fleet: TestFleet) -> dict[str, int]:
    """What could leak: tasks, descriptors, subscriptions, consumers, keys, jobs."""
    bus = fleet.gateway.bus
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "subscriptions": len(bus.client._subs),
    }
    for stream, name in (("JOBS", "jobs"), ("KV_cortex_nodes", "keys")):
        answer = await bus.request(f"$JS.API.STREAM.INFO.{stream}")
        state = json.loads(answer or b"{}")["state"]
        counts[name] = state["num_subjects"] if name == "keys" else state["messages"]
        counts[f"consumers of {name}"] = state["consumer_count"]
    return counts


async def is_as(fleet: TestFleet, before: dict[str, int]) -> bool:
    now = await census(fleet)
    return all(now[what] <= count for what, count in before.items())
