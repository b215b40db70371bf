"""Questions about prompts: how long they may take, and what is said when they take longer."""

import asyncio
import time

import pytest

from cortex.dispatch import render_client
from neuron.service.rendering import RenderService
from tests.support.fleet import scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until

LONG = "word " * 1_000


class Slow:
    """Nodes that need *seconds* for each question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []
        answer = RenderService._rendered

        async def slowly(service: RenderService, data: bytes) -> bytes:
            self.asked.append(service._node)
            await asyncio.sleep(self.seconds)
            return await answer(service, data)

        monkeypatch.setattr(RenderService, "_rendered", slowly)


async def test_a_long_prompt_may_take_longer(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_client, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(render_client, "BYTES_PER_SECOND", 2_500)
    monkeypatch.setattr(render_client, "LOOK_SECONDS", 0.1)
    slow = Slow(monkeypatch)
    async with scripted_fleet(nats, Script(), nodes=2) as fleet:
        slow.seconds = 1.0
        body = {"model": "cortex-demo", "prompt": LONG}
        answer = await fleet.client.post("/tokenize", json=body)
        assert answer.status_code == 200
        assert slow.asked == ["n1"]
        slow.seconds = 30.0
        began = time.monotonic()
        answer = await fleet.client.post("/tokenize", json=body)
        assert answer.status_code == 504
        said = answer.json()["error"]["message"]
        assert "n1 has not turned the prompt of 5," in said
        assert slow.asked == ["n1", "n1"], "the other node would take as long"
        assert time.monotonic() - began < 4


async def test_another_node_is_asked_when_one_is_gone(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_client, "LOOK_SECONDS", 0.1)
    slow = Slow(monkeypatch)
    async with scripted_fleet(nats, Script(), nodes=2) as fleet:
        slow.seconds = 30.0
        asking = asyncio.create_task(
            fleet.client.post("/tokenize", json={"model": "cortex-demo", "prompt": LONG})
        )
        await until(lambda: slow.asked, what="the question")
        slow.seconds = 0.0
        records = fleet.gateway.fleet.records
        monkeypatch.setattr(
            fleet.gateway.fleet, "records", lambda m: [r for r in records(m) if r.node != "n1"]
        )
        answer = await asyncio.wait_for(asking, 3)
        assert answer.status_code == 200
        assert slow.asked == ["n1", "n2"]
