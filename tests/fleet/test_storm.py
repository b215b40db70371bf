"""Many clients that come and leave at any moment leave nothing behind."""

import asyncio
import json
import random

import httpx2
import pytest

from tests.support.fleet import chat_body, scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

CLIENTS = 200
NODES = 3


async def test_clients_that_leave_at_random_leak_nothing(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.runtime.http_server.IDLE_CONNECTION_SECONDS", 1.0)
    rng = random.Random(7)
    script = Script(lambda add: ["x"] * 30, slots=4, step_seconds=0.004, prefill_steps=3)
    limits = httpx2.Limits(max_connections=CLIENTS)
    async with scripted_fleet(nats, script, nodes=NODES) as fleet:
        await fleet.chat()
        tasks_before = len(asyncio.all_tasks())
        async with httpx2.AsyncClient(base_url=fleet.url, timeout=60, limits=limits) as client:
            outcomes = await asyncio.gather(
                *(
                    _visit(client, rng.random() < 0.5, rng.choice((None, rng.random())))
                    for _ in range(CLIENTS)
                )
            )
        finished = [outcome for outcome in outcomes if outcome is not None]
        assert 30 < len(finished) < CLIENTS - 30
        assert set(finished) == {"x" * 30}
        await until(lambda: fleet.is_idle(script))
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before, what="no task is left")
        assert (await fleet.chat()).status_code == 200


async def _visit(client: httpx2.AsyncClient, stream: bool, patience: float | None) -> str | None:
    """One client's answer, or None when it ran out of patience first."""
    try:
        async with asyncio.timeout(patience):
            answer = await client.post("/v1/chat/completions", json=chat_body("Hi", stream=stream))
    except TimeoutError:
        return None
    assert answer.status_code == 200, answer.text
    if not stream:
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content
    events = [json.loads(x.split("data: ")[1]) for x in answer.text.split("\n\n") if "data: {" in x]
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events)
