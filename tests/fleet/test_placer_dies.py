"""Gateways die while they place: another one goes on, and nothing is ordered twice."""

import asyncio
import random
from pathlib import Path

import httpx2
import pytest

from protocol import codec, keys, subjects
from protocol.bus import Bus, BusMessage, KvView
from protocol.fleet import ModelRecord, ModelState
from protocol.leader import Epoch
from protocol.orders import LoadOrder
from protocol.timing import NORMAL
from tests.support.fleet import chat_body
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer, connected
from tests.support.processes import Process, ProcessFleet
from tests.support.waiting import background, until

pytestmark = pytest.mark.xdist_group("wall_clock")

MODELS = ("a", "b", "c", "d", "e")
TAKEOVER_SECONDS = NORMAL.lease_ttl_seconds + 0.5
FILE = "".join(
    f'[[models]]\nid = "{name}"\nsource = "cortex-demo"\nvram_mb = 60\n' for name in MODELS
)


class Audit:
    """Reads along: orders, records, and who holds the lease."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, LoadOrder]] = []
        self.records: dict[str, ModelRecord] = {}
        self.leader = ""
        self.terms = 0
        self.wrong: list[str] = []

    def ordered(self, message: BusMessage) -> None:
        node = message.subject.split(".")[2]
        self.orders.append((node, codec.read_load_order(message.data)))

    def record_changed(self, key: str, value: bytes | None) -> None:
        if ".model." not in key:
            return
        if value is None:
            self.records.pop(key, None)
            return
        record = self.records[key] = codec.read_model_record(value)
        here = [
            r.node
            for r in self.records.values()
            if r.model == record.model and r.state in (ModelState.LOADING, ModelState.READY)
        ]
        if len(here) > 1:
            self.wrong.append(f"{record.model} is on {here}")

    def lease_changed(self, key: str, value: bytes | None) -> None:
        holder = codec.read_leader(value).gateway if value else ""
        self.terms += bool(holder and holder != self.leader)
        self.leader = holder

    def check(self) -> None:
        """Whatever happened, epochs only grow, and no model was loaded twice."""
        assert self.wrong == []
        newest: dict[str, Epoch] = {}
        late = 0
        for node, order in self.orders:
            assert order.epoch is not None
            late += order.epoch < newest.get(node, order.epoch)
            newest[node] = max(newest.get(node, order.epoch), order.epoch)
        assert late == 0


async def watched(bus: Bus, audit: Audit) -> list[KvView]:
    await bus.subscribe(subjects.node_verb("*", "load"), audit.ordered)
    return [
        KvView(bus, keys.NODES, audit.record_changed),
        KvView(bus, keys.LEADER, audit.lease_changed),
    ]


async def ask(client: httpx2.AsyncClient, fleet: ProcessFleet, rng: random.Random) -> None:
    """One request after the other, to whichever gateway is there."""
    while True:
        url = rng.choice([u for u, g in zip(fleet.urls, fleet.gateways, strict=True) if g.is_alive])
        body = chat_body("Hi", model=rng.choice(MODELS), max_tokens=3)
        try:
            await client.post(f"{url}/v1/chat/completions", json=body)
        except httpx2.TransportError:
            await asyncio.sleep(0.05)  # it was killed


async def gateway_named(client: httpx2.AsyncClient, fleet: ProcessFleet, name: str) -> Process:
    for url, process in zip(fleet.urls, fleet.gateways, strict=True):
        try:
            version = (await client.get(f"{url}/version")).json()
        except httpx2.TransportError:
            continue
        if version["gateway"] == name:
            return process
    raise AssertionError(f"{name} is not there")


async def test_placers_are_killed(nats: NatsServer, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(FILE)
    rng = random.Random(RUNS)
    audit = Audit()
    loop = asyncio.get_running_loop()
    takeovers = []
    async with (
        ProcessFleet(nats, tmp_path) as fleet,
        connected(nats.url, "audit") as bus,
        httpx2.AsyncClient(timeout=60) as client,
    ):
        for _ in range(3):
            await fleet.add_gateway(models=str(models))
        for name in ("n1", "n2"):
            await fleet.add_neuron(name, memory_mb=130, empty=1, load_seconds=0.1)
        nodes, leader = await watched(bus, audit)
        async with background(nodes.run()), background(leader.run()):
            await until(lambda: audit.leader and len(audit.records) == 2 * len(MODELS), seconds=30)
            asking = [asyncio.create_task(ask(client, fleet, rng)) for _ in range(4)]
            for _ in range(RUNS):
                await asyncio.sleep(rng.uniform(0.3, 2.0))
                await until(lambda: audit.leader, seconds=10)
                placer = await gateway_named(client, fleet, audit.leader)
                terms, struck = audit.terms, loop.time()
                await placer.kill()
                await until(lambda before=terms: audit.terms > before, seconds=10)  # type: ignore[misc]
                takeovers.append(loop.time() - struck)
                await placer.start()
            await asyncio.sleep(2.0)
            for task in asking:
                task.cancel()
    assert len(audit.orders) > RUNS, "they were at work"
    audit.check()
    report("placer killed: another one holds the lease", takeovers, TAKEOVER_SECONDS)
