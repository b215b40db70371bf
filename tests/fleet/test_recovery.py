"""Whatever happens to those who compute an answer, it comes as if nothing had happened.

Real gateway, bus and neuron services in one process, scripted engines; the deaths of whole
processes are in ``test_deaths``.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.bus import Bus
from protocol.timing import NORMAL
from tests.support.fleet import QUICK, TestFleet, chat_body, running_fleet, scripted_fleet
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer
from tests.support.processes import Tape, http_client, play
from tests.support.proxy import proxy_to
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer, words

COUNT = 120


def expected(seed: int, count: int = COUNT) -> str:
    return "".join(words(seed, count))


@contextlib.asynccontextmanager
async def playing(fleet: TestFleet, seed: int, **body: Any) -> AsyncIterator[Tape]:
    """A stream that has begun when the block begins, and is over when it ends."""
    tape = Tape()
    async with http_client() as client:
        sent = {"seed": seed, "max_tokens": COUNT, **body}
        task = asyncio.create_task(play(client, fleet.url, tape, **sent))
        await until(lambda: tape.text or task.done(), what="the stream begins")
        yield tape
        await task


def engine_of(script: Script) -> Any:
    (engine,) = (one for one in script.engines if one.open)
    return engine


async def test_an_engine_that_dies_is_replaced_by_another_node(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        async with playing(fleet, seed=1) as tape:
            engine_of(script).crash("killed by signal 9")
        assert tape.text == expected(1)
        assert (tape.done, tape.finish) == (True, "stop")
        assert tape.worst_gap < 1.0
        moved = b'cortex_moved_requests_total{continuity="exact"} 1.0'
        await until(lambda: moved in exposition(fleet))
        await until(lambda: len(script.engines) == 3, what="the model reloads by itself")
        await fleet.ready(nodes=2)


async def test_the_only_engine_dies_and_the_stream_waits_for_its_return(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script) as fleet:
        async with playing(fleet, seed=2) as tape:
            engine_of(script).crash()
        assert tape.text == expected(2)
        assert tape.done


async def test_lost_frames_come_again(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that a neuron says, every fifth message is lost."""
    script = Script(answer, step_seconds=0.003)
    count = itertools.count()
    publish = Bus.publish

    async def lossy(bus: Bus, subject: str, data: bytes, **options: Any) -> None:
        if not subject.startswith("cortex.reply.") or next(count) % 5:
            await publish(bus, subject, data, **options)

    monkeypatch.setattr(Bus, "publish", lossy)
    async with scripted_fleet(nats, script) as fleet:
        tapes = [Tape() for _ in range(6)]
        async with http_client() as client:
            await asyncio.gather(
                *(
                    play(client, fleet.url, tape, seed=seed, max_tokens=COUNT)
                    for seed, tape in enumerate(tapes)
                )
            )
        assert [tape.text for tape in tapes] == [expected(seed) for seed in range(6)]
        assert all(tape.done for tape in tapes)


async def test_a_node_that_falls_silent_is_left(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(answer, step_seconds=0.01)
    deaf: set[str] = set()
    publish = Bus.publish

    async def partly(bus: Bus, subject: str, data: bytes, **options: Any) -> None:
        if bus.name not in deaf:
            await publish(bus, subject, data, **options)

    monkeypatch.setattr(Bus, "publish", partly)
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        async with playing(fleet, seed=3) as tape:
            silent = script.engines.index(engine_of(script))
            deaf.add(f"n{silent + 1}")
            await until(lambda: tape.done, what="the other one goes on")
            deaf.clear()  # and what the silent one still says is nobody's
        assert tape.text == expected(3)
        assert 1.0 < tape.worst_gap < 2.5
        await until(lambda: not any(engine.open for engine in script.engines))


async def test_a_node_that_drains_hands_its_streams_on(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01)
    async with running_fleet(nats) as fleet:
        first = await fleet.add_node(script.start, name="n1", drain_seconds=0.1)
        await fleet.ready()
        async with playing(fleet, seed=4) as tape:
            await fleet.add_node(script.start, name="n2")
            await fleet.ready(nodes=2)
            await first.drain()
        assert tape.text == expected(4)
        assert tape.worst_gap < 1.0


async def test_many_streams_move_at_once(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01, slots=16)
    async with scripted_fleet(nats, script, nodes=3) as fleet:
        tapes = [Tape() for _ in range(24)]
        async with http_client() as client:
            tasks = [
                asyncio.create_task(play(client, fleet.url, tape, seed=seed, max_tokens=COUNT))
                for seed, tape in enumerate(tapes)
            ]
            await until(lambda: all(tape.text for tape in tapes))
            max(script.engines, key=lambda engine: engine.open).crash()
            await asyncio.gather(*tasks)
        assert [tape.text for tape in tapes] == [expected(seed) for seed in range(24)]
        await until(lambda: fleet.gateway.dispatcher.in_flight == 0)


@pytest.mark.timeout(60 + 30 * RUNS)
@pytest.mark.filterwarnings(  # nats-py leaves the socket of a stale connection to its collector
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_a_node_that_is_cut_off_is_left_and_parks_its_jobs(nats: NatsServer) -> None:
    limit = NORMAL.cut_off_seconds if RUNS > 1 else 2.0
    count = round((limit + 4.0) / 0.02)  # it outlasts that
    script = Script(answer, step_seconds=0.02)
    parked = []
    async with (
        proxy_to(nats.url) as one,
        proxy_to(nats.url) as two,
        running_fleet(nats, timing=dataclasses.replace(NORMAL, cut_off_seconds=limit)) as fleet,
    ):
        for number, proxy in enumerate((one, two), 1):
            await fleet.add_node(script.start, name=f"n{number}", url=proxy.url)
            await fleet.ready(nodes=number)
        for run in range(RUNS):
            async with playing(fleet, seed=run, max_tokens=count) as tape:
                lonely = script.engines.index(engine_of(script))
                proxy = (one, two)[lonely]
                proxy.swallow()
                began = time.monotonic()
                orphan = script.engines[lonely]
                await until(lambda e=orphan: not e.open, seconds=25, what="parked")  # type: ignore[misc]
                parked.append(time.monotonic() - began)
                proxy.restore()
            assert tape.text == expected(run, count)
            assert tape.worst_gap < 2.5
            await fleet.ready(nodes=2)
    report("a neuron is cut off: it parks its jobs", parked, limit + 1.0)


async def test_a_stream_without_progress_ends(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neuron lives and says so, but nothing comes of it."""
    monkeypatch.setattr("cortex.dispatch.receiver.IDLE_SECONDS", 1.5)
    script = Script(answer, step_seconds=0.01, prefill_steps=300)
    async with scripted_fleet(nats, script) as fleet:
        async with playing(fleet, seed=12, max_tokens=5) as tape:
            pass
        assert tape.error is None, "three seconds of prefill are progress"
        script.prefill_steps = 1
        async with playing(fleet, seed=12) as tape:
            engine_of(script).paused = True
        assert tape.error
        assert "no progress for" in tape.error["message"]
        await until(lambda: not script.engines[0].open)


# -- poison ------------------------------------------------------------------------------------


async def test_a_request_that_kills_engines_fails_and_the_others_live(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01, slots=8)
    script.kills = lambda add: add.sample.seed == 666
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        tapes = [Tape() for _ in range(8)]
        async with http_client() as client:
            tasks = [
                asyncio.create_task(play(client, fleet.url, tape, seed=seed, max_tokens=COUNT))
                for seed, tape in enumerate(tapes)
            ]
            poison = await fleet.client.post(
                "/v1/chat/completions", json=chat_body("Hi", seed=666, max_tokens=5)
            )
            await asyncio.gather(*tasks)
        assert poison.status_code == 500
        error = poison.json()["error"]
        assert error["code"] == "poison"
        assert "2 engines ended" in error["message"]
        assert [tape.error for tape in tapes] == [None] * 8
        assert [tape.text for tape in tapes] == [expected(seed) for seed in range(8)]
        await until(lambda: len(script.engines) == 4, what="two died, two came back")


# -- the bus -----------------------------------------------------------------------------------


async def test_nats_killed_mid_stream_costs_nothing_but_time(nats: NatsServer) -> None:
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        async with playing(fleet, seed=9) as tape:
            nats.kill()
            down = time.monotonic()
            await asyncio.sleep(0.5)
            nats.start()
            down = time.monotonic() - down
        assert tape.text == expected(9)
        assert tape.worst_gap < down + 0.5
        assert b"cortex_moves_total 0.0" in exposition(fleet)


async def test_nats_gone_for_long_is_a_clean_error(nats: NatsServer) -> None:
    brief = dataclasses.replace(QUICK, cut_off_seconds=0.5)
    script = Script(answer, step_seconds=0.01)
    async with scripted_fleet(nats, script, timing=brief) as fleet:
        async with playing(fleet, seed=10) as tape:
            nats.kill()
        assert tape.error
        assert "heard nothing from NATS" in tape.error["message"]
        assert expected(10).startswith(tape.text)
        nats.start()
        await fleet.ready()


def exposition(fleet: TestFleet) -> bytes:
    return fleet.gateway.metrics.exposition()
