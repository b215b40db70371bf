"""The rows of the failure matrix with real processes; ``DEATHS`` says how often.

The figures in docs/reliability.md come from
``DEATHS=100 bin/test -n0 tests/fleet/test_deaths.py -s``.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from protocol import codec
from protocol.bus import BusMessage
from protocol.timing import NORMAL
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer, connected
from tests.support.processes import Process, ProcessFleet, Tape, http_client, play, play_on
from tests.support.proxy import proxy_to
from tests.support.waiting import until
from tests.support.words import words

pytestmark = pytest.mark.xdist_group("wall_clock")

COUNT = 300
STEP_MS = 15
A_HEARTBEAT = NORMAL.heartbeat_seconds + 0.1
"""So that every node has said how it is."""


@contextlib.asynccontextmanager
async def fleet_of(
    nats: NatsServer, logs: Path, *, gateways: int = 1, urls: Sequence[str] = ("", "")
) -> AsyncIterator[ProcessFleet]:
    """A neuron for each of *urls*, by which it reaches NATS."""
    async with ProcessFleet(nats, logs) as fleet:
        for _ in range(gateways):
            await fleet.add_gateway()
        for number, url in enumerate(urls, 1):
            await fleet.add_neuron(
                f"n{number}", url=url, slots=8, step_ms=STEP_MS, note=logs / "note"
            )
        await fleet.ready(len(urls))
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


async def _disturbed(
    client: httpx2.AsyncClient, fleet: ProcessFleet, seed: int
) -> tuple[Tape, asyncio.Task[None]]:
    """A stream that has begun."""
    tape = Tape()
    playing = play(client, fleet.urls[0], tape, seed=seed, max_tokens=COUNT, temperature=1)
    task = asyncio.create_task(playing)
    await until(lambda: tape.text or task.done())
    return tape, task


async def _settled(listener: Listener, fleet: ProcessFleet) -> None:
    """The disturbed neuron is as the other one again, and every heartbeat says so."""
    await until(lambda: listener.busy(fleet) is None, what="its slot is free again")
    await fleet.ready(2)
    await asyncio.sleep(A_HEARTBEAT)


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
            await _settled(listener, fleet)
    report(f"neuron {kind} mid-stream", pauses, limit)


@pytest.mark.timeout(60 + 12 * RUNS)
@pytest.mark.parametrize("moment", ["prompt", "step"])
async def test_a_neuron_dies_before_it_accepts_or_right_after(
    nats: NatsServer, tmp_path: Path, moment: str
) -> None:
    seconds = []
    async with fleet_of(nats, tmp_path) as fleet, http_client() as client:
        for run in range(RUNS):
            (tmp_path / "note").write_text(moment)
            tape = Tape()
            await play(client, fleet.urls[0], tape, seed=run, max_tokens=COUNT, temperature=1)
            check(tape, run)
            (victim,) = (process for process in fleet.neurons if not process.is_alive)
            seconds.append(tape.first_after)
            await victim.start()
            await fleet.ready(2)
            await asyncio.sleep(A_HEARTBEAT)
    when = "before it has accepted" if moment == "prompt" else "right after it has accepted"
    report(f"a neuron is killed {when}: the first token", seconds, 1.5)


@pytest.mark.timeout(60 + 20 * RUNS)
async def test_a_neuron_cut_off(nats: NatsServer, tmp_path: Path) -> None:
    pauses = []
    async with (
        proxy_to(nats.url) as one,
        proxy_to(nats.url) as two,
        fleet_of(nats, tmp_path, urls=(one.url, two.url)) as fleet,
        listening(nats) as listener,
        http_client() as client,
    ):
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            await until(lambda: listener.busy(fleet))
            proxy = one if listener.busy(fleet) is fleet.neurons[0] else two
            proxy.swallow()
            await task
            proxy.restore()
            check(tape, run)
            pauses.append(tape.worst_gap)
            await _settled(listener, fleet)
    report("a neuron is cut off from NATS: another one goes on", pauses, 2.5)


@pytest.mark.timeout(60 + 12 * RUNS)
async def test_a_gateway_killed(nats: NatsServer, tmp_path: Path) -> None:
    """Its client goes on at another one; the slot of a client that does not come is free."""
    pauses, frees = [], []
    async with (
        fleet_of(nats, tmp_path, gateways=2) as fleet,
        listening(nats) as listener,
        http_client() as client,
    ):
        await asyncio.sleep(NORMAL.hearing_seconds)  # until silence counts
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            lost, lost_task = await _disturbed(client, fleet, run + 10_000)
            await fleet.gateways[0].kill()
            killed = time.monotonic()
            for one in (task, lost_task):
                with contextlib.suppress(httpx2.TransportError):
                    await one
            task = asyncio.create_task(play_on(client, fleet.urls[1], tape))
            await until(lambda name=lost.job_id: fleet.has_logged(f"job {name}: gateway"))  # type: ignore[misc]
            frees.append(time.monotonic() - killed)
            await task
            check(tape, run)
            pauses.append(tape.worst_gap)
            assert not lost.done
            await until(lambda: sum(listener.running.values()) == 0, what="slots are free")
            await fleet.gateways[0].start()
            await fleet.ready(2)
            await asyncio.sleep(A_HEARTBEAT)
    report("a gateway is killed: its client goes on elsewhere", pauses, 1.0)
    report("a gateway is killed: the slots of clients that stay away are free", frees, 1.5)


@pytest.mark.timeout(60 + 15 * RUNS)
async def test_a_gateway_frozen(nats: NatsServer, tmp_path: Path) -> None:
    pauses = []
    async with fleet_of(nats, tmp_path) as fleet, http_client() as client:
        await asyncio.sleep(NORMAL.hearing_seconds)
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


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * RUNS)
async def test_the_server_stays_away(nats: NatsServer, tmp_path: Path) -> None:
    """Quicker in ``test_recovery``; here with the times that users meet."""
    ends, refusals = [], []
    async with fleet_of(nats, tmp_path) as fleet, http_client() as client:
        for run in range(RUNS):
            tape, task = await _disturbed(client, fleet, run)
            nats.kill()
            began = time.monotonic()
            await asyncio.sleep(4)
            asked = time.monotonic()
            late = Tape()
            await play(client, fleet.urls[0], late, seed=run)
            refusals.append(time.monotonic() - asked)
            assert late.status == 503
            await task
            ends.append(time.monotonic() - began)
            assert tape.error
            assert "heard nothing from NATS" in tape.error["message"]
            assert "".join(words(run, COUNT)).startswith(tape.text)
            nats.start()
            await fleet.ready(2)
            await asyncio.sleep(A_HEARTBEAT)
    report("NATS stays away: new requests get 503", refusals, 0.25)
    report("NATS stays away: running streams end with an error", ends, 16.0)
