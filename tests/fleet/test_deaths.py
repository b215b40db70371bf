"""Every row of the failure matrix with real processes; ``DEATHS`` says how often.

The figures in docs/reliability.md come from ``DEATHS=100 bin/test tests/fleet/test_deaths.py -s``.
"""

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from protocol import codec
from protocol.bus import BusMessage
from tests.support.nats import NatsServer, connected
from tests.support.processes import Process, ProcessFleet, Tape, http_client, play, play_on
from tests.support.waiting import until
from tests.support.words import words

RUNS = int(os.environ.get("DEATHS", "1"))
COUNT = 300
STEP_MS = 15


@contextlib.asynccontextmanager
async def fleet_of(
    nats: NatsServer, logs: Path, *, gateways: int = 1, neurons: int = 2
) -> AsyncIterator[ProcessFleet]:
    async with ProcessFleet(nats, logs) as fleet:
        for _ in range(gateways):
            await fleet.add_gateway()
        for number in range(1, neurons + 1):
            await fleet.add_neuron(f"n{number}", slots=8, step_ms=STEP_MS)
        await fleet.ready(neurons)
        yield fleet


class Listener:
    """Who runs what, by the heartbeats."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}

    def heard(self, message: BusMessage) -> None:
        beat = codec.read_node_heartbeat(message.data)
        self.running[beat.node] = sum(load.running for load in beat.models.values())

    def busy(self, fleet: ProcessFleet) -> Process | None:
        """The neuron that runs the only stream."""
        return next((p for p in fleet.neurons if self.running.get(p.name)), None)


@contextlib.asynccontextmanager
async def listening(nats: NatsServer) -> AsyncIterator[Listener]:
    listener = Listener()
    async with connected(nats.url, "listener") as bus:
        await bus.subscribe("cortex.heartbeat.node.*", listener.heard)
        yield listener


def report(what: str, pauses: list[float], limit: float) -> None:
    """Prints the row of the table and checks it."""
    median, worst = statistics.median(pauses), max(pauses)
    row = f"| {what} | {len(pauses)} | {median:.2f} s | {worst:.2f} s | {limit:.1f} s |"
    sys.stdout.write(f"\n{row}\n")
    assert worst <= limit


async def _disturbed(
    client: httpx2.AsyncClient, fleet: ProcessFleet, seed: int
) -> tuple[Tape, asyncio.Task[None]]:
    """A stream that has begun."""
    tape = Tape()
    playing = play(client, fleet.urls[0], tape, seed=seed, max_tokens=COUNT, temperature=1)
    task = asyncio.create_task(playing)
    await until(lambda: tape.text or task.done())
    return tape, task


def check(tape: Tape, seed: int) -> None:
    assert tape.error is None
    assert tape.done
    assert tape.text == "".join(words(seed, COUNT))


@pytest.mark.timeout(60 + 12 * RUNS)
@pytest.mark.parametrize(("kind", "limit"), [("killed", 2.5), ("frozen", 3.5)])
async def test_a_neuron(nats: NatsServer, tmp_path: Path, kind: str, limit: float) -> None:
    pauses = []
    async with (
        fleet_of(nats, tmp_path) as fleet,
        listening(nats) as listener,
        http_client() as client,
    ):
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            await until(lambda: listener.busy(fleet))
            victim = listener.busy(fleet)
            assert victim is not None
            if kind == "killed":
                await victim.kill()
                await task
                await victim.start()
            else:
                victim.freeze()
                await task
                victim.thaw()
            check(tape, run)
            pauses.append(tape.worst_gap)
            await until(lambda: listener.busy(fleet) is None, what="its slot is free again")
            await fleet.ready(2)
            await asyncio.sleep(0.6)
    report(f"neuron {kind} mid-stream", pauses, limit)


@pytest.mark.timeout(60 + 12 * RUNS)
async def test_a_gateway_killed(nats: NatsServer, tmp_path: Path) -> None:
    """Its client goes on at another one; the slot of a client that does not come is free."""
    pauses, frees = [], []
    async with (
        fleet_of(nats, tmp_path, gateways=2) as fleet,
        listening(nats) as listener,
        http_client() as client,
    ):
        await asyncio.sleep(3.0)  # until silence counts
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            lost, lost_task = await _disturbed(client, fleet, run + 10_000)
            await fleet.gateways[0].kill()
            killed = time.monotonic()
            for one in (task, lost_task):
                with contextlib.suppress(httpx2.TransportError):
                    await one
            await play_on(client, fleet.urls[1], tape)
            check(tape, run)
            pauses.append(tape.worst_gap)
            assert not lost.done
            await until(lambda: sum(listener.running.values()) == 0, what="slots are free")
            frees.append(time.monotonic() - killed)
            await fleet.gateways[0].start()
            await fleet.ready(2)
            await asyncio.sleep(0.6)
    report("gateway killed; the client reconnects", pauses, 1.5)


@pytest.mark.timeout(60 + 15 * RUNS)
async def test_a_gateway_frozen(nats: NatsServer, tmp_path: Path) -> None:
    pauses = []
    async with fleet_of(nats, tmp_path) as fleet, http_client() as client:
        await asyncio.sleep(3.0)
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            fleet.gateways[0].freeze()
            seconds = 1.0 + run % 4
            await asyncio.sleep(seconds)
            fleet.gateways[0].thaw()
            await task
            check(tape, run)
            pauses.append(tape.worst_gap - seconds)
    report("gateway frozen for 1–4 s, after its thaw", pauses, 1.0)


@pytest.mark.timeout(60 + 12 * RUNS)
@pytest.mark.parametrize("kind", ["killed", "frozen"])
async def test_the_server(nats: NatsServer, tmp_path: Path, kind: str) -> None:
    pauses = []
    async with fleet_of(nats, tmp_path) as fleet, http_client() as client:
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            down = (0.05, 0.5, 2.0)[run % 3]
            began = time.monotonic()
            if kind == "killed":
                nats.kill()
                await asyncio.sleep(down)
                nats.start()
            else:
                nats.freeze()
                await asyncio.sleep(down)
                nats.thaw()
            down = time.monotonic() - began
            await task
            check(tape, run)
            pauses.append(tape.worst_gap - down)
        moves = [(await client.get(url)).text for url in fleet.metrics_urls]
        assert all("cortex_moves_total 0.0" in text for text in moves)
    report(f"nats-server {kind} for up to 2 s, after its return", pauses, 0.5)
