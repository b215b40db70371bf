"""A crowd asks for a real model that is not loaded: one load, no error, and no silence."""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.support.fleet import chat_body
from tests.support.nats import NatsServer
from tests.support.processes import Process, ProcessFleet, free_port
from tests.support.waiting import until

CROWD = 64
SLOTS = 16
SILENCE_SECONDS = 5.0
SAID_SECONDS = 2.0


class Heard(NamedTuple):
    """What one client saw: when, and of what kind."""

    status: int
    pieces: list[tuple[float, str]]

    @property
    def first_token(self) -> float:
        return next(at for at, line in self.pieces if _has_text(line))

    @property
    def worst_silence(self) -> float:
        times = [at for at, _ in self.pieces]
        return max(after - before for before, after in itertools.pairwise(times))


def _has_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


async def listen(client: httpx2.AsyncClient, url: str) -> Heard:
    body = chat_body("What is 17 + 25?", stream=True, max_tokens=8, temperature=0)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        pieces = [(time.monotonic(), line) async for line in answer.aiter_lines() if line]
        return Heard(answer.status_code, pieces)


async def test_a_crowd_before_a_model_that_is_not_loaded(nats: NatsServer, tmp_path: Path) -> None:
    log = tmp_path / "neuron.log"
    command = [sys.executable, "-m", "neuron", "serve", "--name", "n1", "--nats", nats.url]
    command += ["--listen", f"127.0.0.1:{free_port()}", "--slots", str(SLOTS)]
    neuron = Process("neuron", command, log)
    limits = httpx2.Limits(max_connections=2 * CROWD)
    async with (
        ProcessFleet(nats, tmp_path) as fleet,
        httpx2.AsyncClient(timeout=60, limits=limits) as client,
    ):
        url = await fleet.add_gateway()
        await neuron.start()
        fleet.neurons.append(neuron)

        async def is_offered() -> bool:
            try:
                listed = (await client.get(f"{url}/v1/models")).json()["data"]
            except httpx2.TransportError:
                return False
            return bool(listed) and listed[0]["available_on"] == ["n1"]

        await until(is_offered, seconds=30)
        ready_at = 0.0

        async def see_it_ready() -> None:
            nonlocal ready_at
            await until(lambda: "is ready" in log.read_text(), seconds=60)
            ready_at = time.monotonic()

        seeing = asyncio.create_task(see_it_ready())
        began = time.monotonic()
        heard = await asyncio.gather(*(listen(client, url) for _ in range(CROWD)))
        await seeing
    assert [one.status for one in heard] == [200] * CROWD
    assert log.read_text().count("is ready") == 1
    assert log.read_text().count("told to load") == 1
    texts = ["".join(line for _, line in one.pieces) for one in heard]
    assert all("error" not in text for text in texts)
    assert max(one.worst_silence for one in heard) < SILENCE_SECONDS
    load, first = ready_at - began, min(one.first_token for one in heard) - began
    sys.stdout.write(f"\nload {load:.2f} s, first token {first:.2f} s, {first / load:.3f} of it\n")
    if load > SAID_SECONDS:  # a quicker one is over before there is anything to say
        told = (": to be loaded on n1", ": loading on n1")
        assert any(words in text for text in texts for words in told), "how far it is"
    assert first < 1.05 * load + 0.05
