"""How soon each dialect's client hears something, how long it may hear nothing, and how soon the
work for it ends when it leaves."""

import asyncio
import time
from typing import Any

import pytest

from cortex.dispatch.receiver import Stream
from cortex.streams.events import Event, Started
from tests.support.fleet import MODEL, TestFleet, running_fleet, scripted_fleet
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer
from tests.support.processes import http_client
from tests.support.scripted import Script
from tests.support.waiting import seconds_until, until

pytestmark = pytest.mark.xdist_group("wall_clock")

TURN = [{"role": "user", "content": "Hi"}]
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURN},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 10_000},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": TURN, "max_tokens": 10_000},
}
STEP_SECONDS = 0.005
ACCEPTED_SECONDS = 0.05
ADMITTED_SECONDS = 1.05
GAP_SECONDS = 5.0
LEAVING_SECONDS = STEP_SECONDS + 0.05


def body(path: str, *, stream: bool = True) -> dict[str, Any]:
    return {"model": MODEL, "stream": stream, **ENDPOINTS[path]}


async def pauses(fleet: TestFleet, path: str, pieces: int) -> list[float]:
    """Seconds before each of the first pieces of a stream."""
    found = []
    began = time.monotonic()
    async with fleet.client.stream("POST", path, json=body(path)) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_raw():
            now = time.monotonic()
            found.append(now - began)
            began = now
            if len(found) == pieces:
                return found
    raise AssertionError(f"only {len(found)} pieces came")


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_the_first_byte_follows_accepted(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    accepted: list[float] = []
    deliver = Stream.deliver

    def noted(stream: Stream, event: Event) -> None:
        if isinstance(event, Started):
            accepted.append(time.monotonic())
        deliver(stream, event)

    monkeypatch.setattr(Stream, "deliver", noted)
    script = Script(step_seconds=STEP_SECONDS, prefill_steps=10_000)
    seconds = []
    async with scripted_fleet(nats, script) as fleet:
        for _ in range(RUNS):
            accepted.clear()
            began = time.monotonic()
            (first,) = await pauses(fleet, path, 1)
            seconds.append(began + first - accepted[0])
            await until(lambda: script.engines[0].open == 0)
    report(f"Accepted → first byte ({path})", seconds, ACCEPTED_SECONDS)


async def test_the_first_byte_comes_although_the_model_does_not(nats: NatsServer) -> None:
    async with running_fleet(nats) as fleet:
        await fleet.add_node(Script(load_seconds=1000).start)
        await until(fleet.gateway.fleet.models)
        firsts = await asyncio.gather(*(pauses(fleet, path, 1) for path in ENDPOINTS))
    report("admission → first byte", [first for (first,) in firsts], ADMITTED_SECONDS)


async def test_no_client_hears_nothing_for_long(nats: NatsServer) -> None:
    script = Script(step_seconds=STEP_SECONDS, prefill_steps=10_000)
    async with scripted_fleet(nats, script) as fleet:
        found = await asyncio.gather(*(pauses(fleet, path, 4) for path in ENDPOINTS))
    report("gaps of a stream", [max(gaps) for gaps in found], GAP_SECONDS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_the_engine_stops_when_the_client_has_left(
    nats: NatsServer, path: str, stream: bool
) -> None:
    script = Script(lambda add: ["x"] * 10_000, step_seconds=STEP_SECONDS, context=20_000)
    seconds = []
    async with scripted_fleet(nats, script) as fleet:
        (engine,) = script.engines
        for _ in range(RUNS):
            before = engine.steps_of.total()
            async with http_client() as client:
                url = f"{fleet.url}{path}"
                asking = client.post(url, json=body(path, stream=stream))
                task = asyncio.create_task(asking)
                await until(lambda n=before: engine.steps_of.total() > n + 5)  # type: ignore[misc]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            seconds.append(await seconds_until(lambda: engine.open == 0))
            await until(lambda: fleet.gateway.dispatcher.in_flight == 0)
    form = "streaming" if stream else "not streaming"
    report(f"a client leaves {path} ({form})", seconds, LEAVING_SECONDS)
