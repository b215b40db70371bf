"""What a large fleet costs a gateway: ``python -m bench.nodes [--nodes N] [--models M]``.

N neurons that exist on the bus only (records, heartbeats at 2 Hz; each offers M models and has two
of them loaded) beside a real gateway process. Measured: until all are in ``/v1/models``, what the
listings take, how long a changed record takes to be seen in a gateway, and the gateway's share of
a core when nobody asks for anything.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from cortex.fleet.state import Fleet
from protocol import codec, keys, subjects
from protocol.bus import Bus, KvBucket, KvView
from protocol.fleet import (
    Device,
    DeviceKind,
    Estimate,
    ModelLoad,
    ModelRecord,
    ModelState,
    NodeHeartbeat,
    NodeInfo,
)
from tests.support.nats import NatsServer, running_nats
from tests.support.processes import ProcessFleet
from tests.support.waiting import until

GIB = 1 << 30
IDLE_SECONDS = 20.0
CHANGES = 200


class Neuron:
    """What a neuron writes and sends, and nothing else."""

    def __init__(self, bus: Bus, number: int, models: int) -> None:
        self.name = f"node-{number:03}"
        self._bus = bus
        self._bucket = KvBucket(bus, keys.NODES)
        self._instance = f"instance-{number}"
        self._models = [f"org/model-{m:02}" for m in range(models)]
        self._loaded = {self._models[number % models], self._models[(number + 1) % models]}

    async def join(self) -> None:
        """All its records."""
        device = Device(DeviceKind.CUDA, 0, "GPU", 24 * GIB, budget_bytes=22 * GIB)
        info = NodeInfo(self.name, self._instance, "0.1.0", f"{self.name}.lan", (device,))
        await self._bucket.put(keys.node_info(self.name), codec.encode(info))
        await self.beat()
        for model in self._models:
            await self.show(model)

    async def show(self, model: str, seconds: float = 1.0) -> None:
        """One record."""
        is_loaded = model in self._loaded
        record = ModelRecord(
            node=self.name,
            instance=self._instance,
            model=model,
            state=ModelState.READY if is_loaded else ModelState.ABSENT,
            has_files=True,
            slots=8 if is_loaded else 0,
            estimate=Estimate(8 * GIB, lines=("weights 6.0 GiB", "KV cache 2.0 GiB")),
            devices=(0,) if is_loaded else (),
            reserved_bytes=8 * GIB if is_loaded else 0,
            load_seconds=seconds,
        )
        await self._bucket.put(keys.node_model(self.name, model), codec.encode(record))

    async def beat(self) -> None:
        """Its pulse."""
        loads = {model: ModelLoad(free_slots=8, idle_seconds=60.0) for model in self._loaded}
        beat = NodeHeartbeat(self.name, self._instance, loads)
        await self._bus.publish(subjects.node_heartbeat(self.name), codec.encode(beat))


async def pulse(neurons: Sequence[Neuron]) -> None:
    """All of them at 2 Hz, spread over the half second."""
    while True:
        for neuron in neurons:
            await neuron.beat()
            await asyncio.sleep(0.5 / len(neurons))


async def main(nodes: int, models: int) -> None:
    """The table."""
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder) / "nats") as nats:
        async with ProcessFleet(nats, Path(folder)) as fleet, httpx2.AsyncClient() as client:
            url = await fleet.add_gateway()
            await until(lambda: _answers(client, f"{url}/health"), seconds=30)
            bus = await Bus.connect(nats.url, name="neurons")
            neurons = [Neuron(bus, number, models) for number in range(nodes)]
            await until(KvBucket(bus, keys.NODES).provision)
            began = time.monotonic()
            beating = asyncio.create_task(pulse(neurons))
            await asyncio.gather(*(neuron.join() for neuron in neurons))
            await until(lambda: _all_there(client, url, nodes, models), seconds=30)
            rows = [("all have joined", f"{time.monotonic() - began:.2f} s", "5 s")]
            await asyncio.sleep(3.0)
            for path in ("/v1/models", "/fleet"):
                median, worst = await _listing(client, url + path)
                rows.append((f"{path}, median (p99)", f"{median:.1f} ({worst:.1f}) ms", "10 ms"))
            rows.append(
                ("a record is seen, p99", f"{await _seen(nats, neurons[0]):.1f} ms", "5 ms")
            )
            share = await _share(fleet.gateways[0].pid)
            rows.append(("an idle gateway's share of a core", f"{share:.1%}", "5 %"))
            beating.cancel()
            await bus.close()
    sys.stdout.write(f"{nodes} nodes, {models} models each\n\n")
    sys.stdout.write("| what | measured | allowed |\n| --- | ---: | ---: |\n")
    for row in rows:
        sys.stdout.write(f"| {' | '.join(row)} |\n")


async def _answers(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False


async def _all_there(client: httpx2.AsyncClient, url: str, nodes: int, models: int) -> bool:
    found = (await client.get(f"{url}/fleet")).json()["nodes"]
    return len(found) == nodes and all(len(node["models"]) == models for node in found)


async def _listing(client: httpx2.AsyncClient, url: str) -> tuple[float, float]:
    """Milliseconds."""
    took = []
    for _ in range(200):
        began = time.perf_counter()
        (await client.get(url)).raise_for_status()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took), statistics.quantiles(took, n=100)[-1]


async def _seen(nats: NatsServer, neuron: Neuron) -> float:
    """Milliseconds from the beginning of a write until the picture of the fleet has it."""
    bus = await Bus.connect(nats.url, name="view")
    fleet = Fleet()
    seen: dict[float, float] = {}

    def changed(key: str, value: bytes | None) -> None:
        fleet.key_changed(key, value)
        seen[json.loads(value or b"{}").get("load_seconds", 0.0)] = time.perf_counter()

    view = KvView(bus, keys.NODES, changed)
    viewing = asyncio.create_task(view.run())
    await view.filled.wait()
    took = []
    for change in range(CHANGES):
        stamp = 1000.0 + change
        began = time.perf_counter()
        await neuron.show("org/model-00", stamp)
        await until(lambda stamp=stamp: stamp in seen)  # type: ignore[misc]
        took.append(1000 * (seen[stamp] - began))
        await asyncio.sleep(0.01)
    viewing.cancel()
    await bus.close()
    return statistics.quantiles(took, n=100)[-1]


async def _share(pid: int) -> float:
    """Of one core, over a while in which nobody asks."""

    def seconds() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before = seconds()
    await asyncio.sleep(IDLE_SECONDS)
    return (seconds() - before) / IDLE_SECONDS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--models", type=int, default=12)
    options = parser.parse_args()
    asyncio.run(main(options.nodes, options.models))
