"""A neuron's host listens on nothing but the neuron's own loopback port."""

import asyncio
import os
import sys
from pathlib import Path

from tests.support.nats import NatsServer
from tests.support.processes import Process, free_port
from tests.support.waiting import until

LISTEN = "0A"


def listening(pids: set[int]) -> list[tuple[str, int]]:
    """Addresses and ports on which these processes listen, by the kernel's own tables."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            is_open = fields[3] == LISTEN or table.startswith("udp")
            if fields[9] in inodes and is_open:
                address, _, port = fields[1].rpartition(":")
                found.append((address, int(port, 16)))
    return found


def family(pid: int) -> set[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(family(int(child)) for child in children))


async def test_a_neuron_listens_on_its_own_port_only(nats: NatsServer, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "neuron", "serve", "--name", "n1", "--nats", nats.url]
    command += ["--listen", f"127.0.0.1:{port}", "--model", "cortex-demo", "--threads", "1"]
    gateway = Process(
        "gateway",
        [
            *(sys.executable, "-m", "cortex", "serve", "--nats", nats.url),
            *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"),
        ],
        tmp_path / "gateway.log",
    )
    neuron = Process("neuron", command, tmp_path / "neuron.log")
    await gateway.start()
    await neuron.start()
    try:
        await until(lambda: "is ready" in (tmp_path / "neuron.log").read_text(), seconds=60)
        processes = family(neuron.pid)
        assert len(processes) > 1, "its engine is there"
        assert await asyncio.to_thread(listening, processes) == [("0100007F", port)]
    finally:
        await neuron.kill()
        await gateway.kill()
