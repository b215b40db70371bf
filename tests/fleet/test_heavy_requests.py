"""However heavy one client's request is, nobody else notices it.

Real processes: a gateway, a neuron with text processes and a scripted engine. Clients are threads
with plain sockets, so that what is measured is not what the clients do.
"""

import http.client
import itertools
import json
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fleet import chat_body
from tests.support.heavy import requests
from tests.support.nats import NatsServer
from tests.support.processes import ProcessFleet
from tests.support.waiting import until

pytestmark = pytest.mark.xdist_group("wall_clock")

GAP_SECONDS = 0.25
HEALTH_SECONDS = 0.05
NOISE = 4.0
"""By how much the limits may be exceeded beside other tests."""
SOME = (
    "180,000 messages",
    "9,000 tools",
    "a message of 7.6 MB",
    "10,000 messages to shorten",
    "tokens of 1.2 MB as strings",
    "arguments of 5 MB",
)


class Seen(NamedTuple):
    """What others saw while a request was served."""

    status: int
    seconds: float
    worst_gap: float
    worst_health: float

    def __str__(self) -> str:
        return (
            f"{self.status} after {self.seconds:.2f} s; gap {1000 * self.worst_gap:.0f} ms, "
            f"health {1000 * self.worst_health:.0f} ms"
        )


class Others:
    """A client that reads a stream, again and again, and one that asks how the gateway is."""

    def __init__(self, url: str) -> None:
        self._address = urllib.parse.urlsplit(url).netloc
        self._ended = threading.Event()
        self._gaps: list[tuple[float, float]] = []
        self._healths: list[tuple[float, float]] = []
        self.broken: list[str] = []
        works = (self._read_streams, self._ask)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> "Others":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def worst(self, since: float) -> tuple[float, float]:
        """The longest gap in the stream and the slowest answer since a moment."""
        pairs = (self._gaps, self._healths)
        first, second = (max((s for at, s in p if at > since), default=9.0) for p in pairs)
        return first, second

    def _read_streams(self) -> None:
        body = json.dumps(chat_body("Hi", stream=True, max_tokens=1000)).encode()
        while not self._ended.is_set():
            connection = http.client.HTTPConnection(self._address, timeout=30)
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, kind)
            answer = connection.getresponse()
            if answer.status != 200:
                self.broken.append(f"{answer.status} {answer.read(300)!r}")
            for line in self._tokens(answer):
                if b'"error"' in line:
                    self.broken.append(line.decode()[:300])
            connection.close()

    def _tokens(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        last = 0.0
        while not self._ended.is_set() and (line := answer.readline()):
            if line.startswith(b"data: "):
                now = time.monotonic()
                if last:
                    self._gaps.append((now, now - last))
                last = now
                yield line

    def _ask(self) -> None:
        # On one connection: a lost SYN, which some other test's crowd may cause, costs a second.
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._ended.is_set():
            began = time.monotonic()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self._healths.append((time.monotonic(), time.monotonic() - began))
            time.sleep(0.02)
        connection.close()

    def send(self, path: str, body: bytes) -> Seen:
        """Sends a heavy request, and says what they saw meanwhile."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(self._address, timeout=120)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        status = connection.getresponse()
        status.read()
        connection.close()
        seconds = time.monotonic() - began
        time.sleep(0.3)
        return Seen(status.status, seconds, *self.worst(began))


async def watched(nats: NatsServer, folder: Path, names: tuple[str, ...], noise: float) -> None:
    made = requests()
    async with ProcessFleet(nats, folder) as fleet:
        url = await fleet.add_gateway()
        await fleet.add_neuron("n1", step_ms=5, slots=8, context=8192)
        await fleet.ready(1)
        wrong = []
        with Others(url) as others:
            time.sleep(1.0)
            for name in names:
                seen = others.send(*made[name])
                sys.stdout.write(f"{name}: {seen}\n")
                if seen.worst_gap > noise * GAP_SECONDS:
                    wrong.append(f"{name}: {seen}")
                if seen.worst_health > noise * HEALTH_SECONDS:
                    wrong.append(f"{name}: {seen}")
                if seen.status >= 500:
                    wrong.append(f"{name}: {seen}")
        assert others.broken == []
        with urllib.request.urlopen(fleet.metrics_urls[0]) as answer:
            text = answer.read().decode()
        assert "cortex_moves_total 0.0" in text
        assert "cortex_nodes_alive 1.0" in text
        assert wrong == []
        await until(lambda: fleet.neurons[0].is_alive)


async def test_some_heavy_requests(nats: NatsServer, tmp_path: Path) -> None:
    await watched(nats, tmp_path, SOME, NOISE)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_heavy_request(nats: NatsServer, tmp_path: Path) -> None:
    """Alone on the machine."""
    names = tuple(requests())
    assert len(names) >= 32
    await watched(nats, tmp_path, tuple(itertools.chain(names)), 1.0)
