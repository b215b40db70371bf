"""What cannot be served is refused at once, by a real gateway process."""

import asyncio
import json
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer
from tests.support.processes import MODEL, ProcessFleet, Tape, http_client, play
from tests.support.waiting import until

LIMIT_SECONDS = 0.01
OF_TENANT = 256


# Clients whose server is killed may leave a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_full_line(nats: NatsServer, tmp_path: Path) -> None:
    seconds = []
    async with ProcessFleet(nats, tmp_path) as fleet, http_client() as client:
        url = await fleet.add_gateway()
        await fleet.add_neuron("n1", slots=1, step_ms=50)
        await fleet.ready(1)

        def more(count: int) -> list[asyncio.Task[None]]:
            return [
                asyncio.create_task(play(client, url, Tape(), max_tokens=8000))
                for _ in range(count)
            ]

        flood = more(4)
        await asyncio.sleep(1.5)  # the slot and the hand-over are taken
        flood += more(OF_TENANT)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        await until(lambda: _waiting(fleet, OF_TENANT), what="a full line")
        for _ in range(RUNS):
            began = time.monotonic()
            refused = await client.post(f"{url}/v1/chat/completions", json=body)
            seconds.append(time.monotonic() - began)
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert f"{OF_TENANT} of them yours" in refused.json()["error"]["message"]
        # The flood ends with its gateway: a client that is cancelled in the middle of something may
        # leave its socket behind.
        await fleet.gateways[0].kill()
        await asyncio.gather(*flood, return_exceptions=True)
    report("the line is full: 429", seconds, LIMIT_SECONDS)


async def _waiting(fleet: ProcessFleet, count: int) -> bool:
    async with httpx2.AsyncClient() as client:
        text = (await client.get(fleet.metrics_urls[0])).text
    return f"cortex_requests_waiting {count}.0" in text


async def test_a_body_that_is_too_large(nats: NatsServer, tmp_path: Path) -> None:
    """For the gateway, and just for the bus; from its last byte on."""
    seconds: dict[int, list[float]] = {40: [], 8: []}
    async with ProcessFleet(nats, tmp_path) as fleet:
        url = await fleet.add_gateway()
        await fleet.add_neuron("n1")
        await fleet.ready(1)
        for size, measured in seconds.items():
            text = "x" * (size << 20)
            content = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            for _ in range(RUNS):
                measured.append(await _refused(url, json.dumps(content).encode()))
    report("a body of 40 MiB: 413", seconds[40], LIMIT_SECONDS)
    report("a request of 8 MiB, which is too much for the bus: 413", seconds[8], LIMIT_SECONDS)


async def _refused(url: str, body: bytes) -> float:
    """Seconds from the last byte to the refusal."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[:-1])
    await writer.drain()
    await asyncio.sleep(0.5)
    began = time.monotonic()
    writer.write(body[-1:])
    status = await reader.readline()
    seconds = time.monotonic() - began
    assert b" 413 " in status
    writer.close()
    return seconds
