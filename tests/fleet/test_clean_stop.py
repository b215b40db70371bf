"""Programs that are told to stop end within their bound and show no stack trace, whatever clients
do."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from tests.support.connections import BUSY, RESTING, Connection, Open, idle, streaming
from tests.support.nats import NatsServer
from tests.support.processes import (
    Process,
    ProcessFleet,
    Tape,
    free_port,
    http_client,
    play,
    play_on,
)
from tests.support.waiting import until
from tests.support.words import words

DRAIN_SECONDS = 0.6
AT_ONCE_SECONDS = 2.0
"""Of a process that waits for nobody; most of it is the interpreter's own end on a busy machine."""
CUT_OFF_SECONDS = AT_ONCE_SECONDS + DRAIN_SECONDS + 1


@contextlib.asynccontextmanager
async def fleet_of(
    nats: NatsServer, logs: Path, *, drain_seconds: float = DRAIN_SECONDS, gateways: int = 1
) -> AsyncIterator[ProcessFleet]:
    """A node with room for many long answers."""
    async with ProcessFleet(nats, logs) as fleet:
        for _ in range(gateways):
            await fleet.add_gateway(drain_seconds=drain_seconds, http2=True)
        await fleet.add_neuron("n1", slots=64, step_ms=10, note=logs / "note")
        await fleet.ready(1)
        yield fleet


@contextlib.asynccontextmanager
async def opened(kinds: Sequence[Open], port: int) -> AsyncIterator[list[Connection]]:
    connections: list[Connection] = []
    try:
        for kind in kinds:
            async with asyncio.timeout(10):
                connections.append(await kind(port))
        yield connections
    finally:
        for _, writer in connections:
            writer.transport.abort()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def stopped(
    process: Process, seconds: float, by: signal.Signals = signal.SIGTERM
) -> tuple[int, float]:
    """Its exit code, and how long it took."""
    began = time.monotonic()
    process.signal(by)
    code = await process.ended(seconds + 5)
    took = time.monotonic() - began
    assert took < seconds, process.logged
    for word in ("Traceback", "never retrieved", "never awaited", "was destroyed", "Unhandled"):
        assert word not in process.logged, process.logged
    return code, took


@pytest.mark.parametrize("kind", RESTING)
async def test_nobody_waits_for_what_rests(nats: NatsServer, tmp_path: Path, kind: Open) -> None:
    async with (
        fleet_of(nats, tmp_path, drain_seconds=30) as fleet,
        opened([kind] * 20, port_of(fleet.urls[0])),
    ):
        assert (await stopped(fleet.gateways[0], AT_ONCE_SECONDS))[0] == 0


@pytest.mark.parametrize("kind", BUSY)
async def test_what_is_under_way_is_cut_off_in_the_end(
    nats: NatsServer, tmp_path: Path, kind: Open
) -> None:
    async with (
        fleet_of(nats, tmp_path) as fleet,
        opened([kind] * 5, port_of(fleet.urls[0])),
    ):
        assert (await stopped(fleet.gateways[0], CUT_OFF_SECONDS))[0] == 0


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_all_at_once(nats: NatsServer, tmp_path: Path, by: signal.Signals) -> None:
    async with (
        fleet_of(nats, tmp_path) as fleet,
        opened([*RESTING, *BUSY] * 3, port_of(fleet.urls[0])) as connections,
        opened([idle] * 10, port_of(fleet.metrics_urls[0].removesuffix("/metrics"))),
    ):
        assert (await stopped(fleet.gateways[0], CUT_OFF_SECONDS, by))[0] == 0
        for reader, _ in connections:
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    await reader.read()


async def test_an_answer_that_ends_in_time_is_whole(nats: NatsServer, tmp_path: Path) -> None:
    async with fleet_of(nats, tmp_path, drain_seconds=30) as fleet, http_client() as client:
        tape = Tape()
        playing = asyncio.create_task(play(client, fleet.urls[0], tape, seed=3, max_tokens=100))
        await until(lambda: tape.text)
        code, _ = await stopped(fleet.gateways[0], AT_ONCE_SECONDS + 3)
        await playing
        assert (code, tape.done, tape.text) == (0, True, "".join(words(3, 100)))


async def test_streams_are_taken_up_at_another_gateway(nats: NatsServer, tmp_path: Path) -> None:
    async with fleet_of(nats, tmp_path, gateways=2) as fleet, http_client() as client:
        tapes = [Tape() for _ in range(8)]
        playing = [
            asyncio.create_task(play(client, fleet.urls[0], tape, seed=seed, max_tokens=400))
            for seed, tape in enumerate(tapes)
        ]
        await until(lambda: all(tape.text for tape in tapes))
        await stopped(fleet.gateways[0], CUT_OFF_SECONDS)
        broken = await asyncio.gather(*playing, return_exceptions=True)
        assert all(isinstance(error, httpx2.TransportError) for error in broken)
        await asyncio.gather(*(play_on(client, fleet.urls[1], tape) for tape in tapes))
        assert [tape.error for tape in tapes] == [None] * 8
        assert [tape.text for tape in tapes] == ["".join(words(seed, 400)) for seed in range(8)]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_it_at_once(
    nats: NatsServer, tmp_path: Path, by: signal.Signals
) -> None:
    async with (
        fleet_of(nats, tmp_path, drain_seconds=30) as fleet,
        opened([streaming] * 5, port_of(fleet.urls[0])),
    ):
        gateway = fleet.gateways[0]
        gateway.signal(by)
        await until(lambda: "stopping" in gateway.logged)
        assert (await stopped(gateway, AT_ONCE_SECONDS, by))[0] == 130


async def test_nats_is_gone_before(nats: NatsServer, tmp_path: Path) -> None:
    async with (
        fleet_of(nats, tmp_path) as fleet,
        opened([*RESTING, streaming, streaming], port_of(fleet.urls[0])),
    ):
        nats.kill()
        await until(lambda: "lost the connection" in fleet.gateways[0].logged)
        assert (await stopped(fleet.gateways[0], CUT_OFF_SECONDS + 2))[0] == 0
        assert (await stopped(fleet.neurons[0], 12))[0] == 0


async def test_a_neuron_waits_for_nobody(nats: NatsServer, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "neuron", "serve", "--name", "n1", "--nats", nats.url]
    neuron = Process("n1", [*command, "--listen", f"127.0.0.1:{port}"], tmp_path / "n1.log")
    await neuron.start()
    try:
        await until(lambda: "loading at start:" in neuron.logged, seconds=20)
        async with opened(RESTING * 5, port):
            assert (await stopped(neuron, AT_ONCE_SECONDS + 1))[0] == 0
    finally:
        await neuron.kill()
