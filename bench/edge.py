"""What crowds of bad clients cost a gateway, and the others that it serves.

``python -m bench.edge [KIND …]``. A gateway and a neuron with scripted engines, as processes of
their own; the bad clients are another process. For each kind: the gateway's memory above its start
(private bytes, at most and afterwards), and a guest's 95th percentile of the time to the first
token, alone and beside them.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import httpx2

from bench.flood import first_token, p95
from tests.support.nats import running_nats
from tests.support.processes import ProcessFleet, http_client

QUESTIONS = 60
HOLD_SECONDS = 40.0
_JSON = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, limit=4096)


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\n{_JSON}Content-Length: {length}\r\n\r\n".encode()


async def _held(port: int, path: str, sent: int, of: int) -> None:
    """Sends a part of a body, and holds the connection open for as long as it may."""
    reader, writer = await _connect(port)
    part = b" " * (1 << 20)
    with contextlib.suppress(ConnectionError):
        writer.write(_head(path, of))
        for _ in range(sent // len(part)):
            writer.write(part)
            await writer.drain()
        while await reader.read(4096):
            pass
    writer.transport.abort()


async def bodies(port: int) -> None:
    """500 clients that send 15 MB of a body of 16 MB, and then nothing."""
    await _all(500, lambda: _held(port, "/v1/chat/completions", 15_000_000, 16_000_000))


async def order(port: int) -> None:
    """An operator's body of 400 MB."""
    await _held(port, "/models/load", 400_000_000, 400_000_000)


async def idle(port: int) -> None:
    """5,000 connections on which nothing happens, opened again when they are closed."""

    async def rest() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await _connect(port)
                await reader.read(1)
                writer.transport.abort()
            await asyncio.sleep(0.5)

    await _all(5000, rest)


async def drips(port: int) -> None:
    """1,500 bodies of which a byte comes every two seconds."""

    async def drip() -> None:
        reader, writer = await _connect(port)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            writer.write(_head("/v1/chat/completions", 10_000))
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await reader.read(4096)
        ended.append(time.monotonic() - began)
        writer.transport.abort()

    ended: list[float] = []
    await _all(1500, drip)
    print(f"ended after {min(ended):.1f} to {max(ended):.1f} s", file=sys.stderr)


async def _all(count: int, work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(work() for _ in range(count)), return_exceptions=True)


KINDS = {work.__name__: work for work in (bodies, order, idle, drips)}


def private_mib(pid: int) -> float:
    """The memory that a process has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


class Watch:
    """The largest memory of a process, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.most = 0.0

    async def run(self) -> None:
        while True:
            self.most = max(self.most, private_mib(self.pid))
            await asyncio.sleep(0.1)


class Row(NamedTuple):
    """What one kind of bad clients did."""

    kind: str
    most_mib: float
    after_mib: float
    alone: list[float]
    beside: list[float]
    ready_status: int

    def print(self) -> None:
        alone, beside = p95(self.alone), p95(self.beside)
        print(
            f"| {self.kind} | {self.most_mib:.0f} | {self.after_mib:.0f} | {alone * 1e3:.0f} ms | "
            f"{beside * 1e3:.0f} ms | {beside / alone:.2f} | "
            f"{statistics.median(self.beside) / statistics.median(self.alone):.2f} | "
            f"{self.ready_status} |",
            flush=True,
        )


async def ask(url: str, seconds: float) -> list[float]:
    """A guest's first tokens, for at least so long."""
    async with http_client() as client:
        found: list[float] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends or len(found) < QUESTIONS:
            found.append(await first_token(client, url, "guest", 10))
            await asyncio.sleep(0.05)
        return found


async def measure(kind: str, url: str, pid: int) -> Row:
    """Runs the bad clients of one kind beside a guest."""
    alone = await ask(url, 5)
    before = private_mib(pid)
    watch = Watch(pid)
    watching = asyncio.create_task(watch.run())
    command = [sys.executable, "-m", "bench.edge", "--attack", url, kind]
    others = await asyncio.create_subprocess_exec(*command)
    await asyncio.sleep(3)
    beside = await ask(url, HOLD_SECONDS)
    async with httpx2.AsyncClient(timeout=10) as client:
        ready = (await client.get(f"{url}/ready")).status_code
    with contextlib.suppress(ProcessLookupError):
        others.kill()
    await others.wait()
    await asyncio.sleep(12)
    watching.cancel()
    return Row(kind, watch.most - before, private_mib(pid) - before, alone, beside, ready)


async def run(kinds: list[str]) -> None:
    """Prints a row for each kind."""
    print("| kind | MiB at most | MiB after | p95 alone | p95 beside | ratio | median | ready |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder)) as nats:
        for kind in kinds:
            async with ProcessFleet(nats, Path(folder)) as fleet:
                url = await fleet.add_gateway()
                await fleet.add_neuron(f"n-{kind}", slots=8, step_ms=20, prefill_steps=5)
                await fleet.ready(1)
                (await measure(kind, url, fleet.gateways[0].pid)).print()
                if "Traceback" in fleet.gateways[0].logged:
                    print(json.dumps(fleet.gateways[0].logged[-3000:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help=", ".join(KINDS))
    parser.add_argument("--attack", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.attack:
        port = int(options.attack.rpartition(":")[2])
        asyncio.run(KINDS[options.kinds[0]](port))
    else:
        asyncio.run(run(options.kinds or list(KINDS)))


if __name__ == "__main__":
    main()
