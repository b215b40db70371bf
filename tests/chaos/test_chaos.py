"""Random deaths under load: answers are exact, errors have a cause, nothing is left behind."""

import asyncio
import contextlib
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from protocol import codec, keys
from protocol.bus import Bus, BusMessage
from tests.support.chaos import Books, Chaos
from tests.support.nats import NatsServer, connected
from tests.support.processes import ProcessFleet
from tests.support.waiting import until

GATEWAYS, NEURONS = 2, 4


@contextlib.asynccontextmanager
async def fleet_of_processes(nats: NatsServer, logs: Path) -> AsyncIterator[ProcessFleet]:
    async with ProcessFleet(nats, logs) as fleet:
        for _ in range(GATEWAYS):
            await fleet.add_gateway()
        for number in range(1, NEURONS + 1):
            await fleet.add_neuron(f"n{number}", slots=8, step_ms=15)
        await fleet.ready(NEURONS)
        yield fleet


async def test_a_little_chaos(nats: NatsServer, tmp_path: Path) -> None:
    await _run(nats, tmp_path, seed=1, seconds=10, mean_pause=1.0, clients=6, faults=4)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_ten_minutes_of_chaos(nats: NatsServer, tmp_path: Path, seed: int) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "600"))
    await _run(
        nats, tmp_path, seed=seed, seconds=seconds, mean_pause=2.2, clients=10, faults=seconds / 3
    )


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_chaos_while_models_take_turns(nats: NatsServer, tmp_path: Path) -> None:
    """Ten models where eight have room. Until a model is loaded elsewhere, only the gateway knows
    the answer so far: more streams than otherwise lose both."""
    names = [f"m{number}" for number in range(10)]
    file = tmp_path / "models.toml"
    file.write_text(
        "".join(f'[[models]]\nid = "{n}"\nsource = "cortex-demo"\nvram_mb = 60\n' for n in names)
    )
    seconds = float(os.environ.get("CHAOS_SECONDS", "300"))
    async with ProcessFleet(nats, tmp_path) as fleet:
        for _ in range(GATEWAYS):
            await fleet.add_gateway(models=str(file))
        for number in range(1, NEURONS + 1):
            await fleet.add_neuron(
                f"n{number}", slots=8, step_ms=15, memory_mb=130, empty=1, load_seconds=0.5
            )
        chaos = Chaos(fleet, 4, mean_pause=2.2, models=names)
        await chaos.run(seconds, 10)
        books = chaos.books
        sys.stdout.write(_summary(books))
        assert not books.wrong
        assert not books.unexplained()
        assert books.outcomes["exact"] >= 0.95 * books.judged, books.errors
        await _is_clean(fleet, models=len(names))


async def _run(
    nats: NatsServer,
    logs: Path,
    *,
    seed: int,
    seconds: float,
    mean_pause: float,
    clients: int,
    faults: float,
) -> None:
    async with fleet_of_processes(nats, logs) as fleet:
        before, census = _descriptors(fleet), await _census(fleet)
        chaos = Chaos(fleet, seed, mean_pause=mean_pause)
        await chaos.run(seconds, clients)
        books = chaos.books
        sys.stdout.write(_summary(books))
        assert not books.wrong
        assert not books.unexplained()
        assert len(books.faults) >= faults
        assert books.outcomes["exact"] >= 0.99 * books.judged, books.errors
        await fleet.ready(NEURONS)
        await _is_clean(fleet)
        with contextlib.suppress(AssertionError):  # the next line says what is different
            await until(lambda: _is_as(fleet, census), seconds=60)
        assert await _census(fleet) == census
        after = _descriptors(fleet)
        assert all(count <= before[name] + 12 for name, count in after.items()), (before, after)


def _summary(books: Books) -> str:
    kinds = statistics.multimode(fault.what.split()[0] for fault in books.faults)
    gaps = sorted(books.gaps)
    worst = f"{gaps[-1]:.1f} s, p99 {gaps[int(0.99 * (len(gaps) - 1))]:.1f} s" if gaps else "-"
    errors = "\n".join(f"  {count} × {kind}" for kind, count in books.kinds().items())
    return (
        f"{dict(books.outcomes)}; {len(books.faults)} faults, mostly {kinds}; worst pause {worst}\n"
        f"{errors}"
    )


def _descriptors(fleet: ProcessFleet) -> dict[str, int]:
    """Open files of every process of the fleet."""
    processes = [*fleet.gateways, *fleet.neurons]
    return {p.name: len(os.listdir(f"/proc/{p.pid}/fd")) for p in processes}


async def _census(fleet: ProcessFleet) -> dict[str, int]:
    """Subscriptions of every client, keys and consumers, as the server counts them."""
    counts: dict[str, int] = {}
    async with httpx2.AsyncClient(base_url=fleet.nats.monitor_url) as client:
        connections = (await client.get("/connz?subs=1&limit=10000")).json()["connections"]
        streams = (await client.get("/jsz?streams=1")).json()["account_details"][0]["stream_detail"]
    names = {process.name for process in fleet.neurons}
    for connection in connections:
        name = connection.get("name", "")
        kind = name if name in names else "gateways"
        counts[kind] = counts.get(kind, 0) + connection["subscriptions"]
    for stream in streams:
        counts[f"consumers of {stream['name']}"] = stream["state"]["consumer_count"]
        if stream["name"].startswith("KV_") and stream["name"] not in _COME_AND_GO:
            counts[f"keys of {stream['name']}"] = stream["state"].get("num_subjects", 0)
    return counts


_COME_AND_GO = {f"KV_{name}" for name in (keys.WANTED, keys.PLACEMENT, keys.EVICTION, keys.LEADER)}
"""What is wanted and what was decided; a removed key leaves a marker for a minute."""


async def _is_as(fleet: ProcessFleet, census: dict[str, int]) -> bool:
    return await _census(fleet) == census


async def _is_clean(fleet: ProcessFleet, models: int = 1) -> None:
    """No slot, job or consumer is left over."""
    beats: dict[str, int] = {}

    def heard(message: BusMessage) -> None:
        beat = codec.read_node_heartbeat(message.data)
        beats[beat.node] = sum(load.running + load.queued for load in beat.models.values())

    async with connected(fleet.nats.url, "spy") as bus, httpx2.AsyncClient() as client:
        await bus.subscribe("cortex.heartbeat.node.*", heard)
        await until(
            lambda: len(beats) == NEURONS and not any(beats.values()), seconds=40, what="free slots"
        )
        await until(lambda: _idle(client, fleet), seconds=10, what="idle gateways")
        await until(lambda: _no_jobs(bus), seconds=80, what="an empty stream")
        info = json.loads(await bus.request("$JS.API.STREAM.INFO.JOBS") or b"{}")
        assert info["state"]["consumer_count"] == 3 * models
    await asyncio.sleep(0)


async def _idle(client: httpx2.AsyncClient, fleet: ProcessFleet) -> bool:
    texts = [(await client.get(url)).text for url in fleet.metrics_urls]
    return all(
        f"cortex_requests_{what} 0.0" in text for text in texts for what in ("in_flight", "waiting")
    )


async def _no_jobs(bus: Bus) -> bool:
    info = json.loads(await bus.request("$JS.API.STREAM.INFO.JOBS") or b"{}")
    return bool(info) and info["state"]["messages"] == 0
