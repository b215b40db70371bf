"""Questions about prompts: how long they may take, and what is said when they take longer."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from cortex.dispatch import render_client
from neuron.service import rendering
from neuron.service.rendering import RenderService
from neuron.service.texts.model_texts import ModelTexts
from protocol.errors import ErrorCode, FleetError
from tests.support.fleet import scripted_fleet
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

LONG = "word " * 1_000


class Slow:
    """Nodes that need *seconds* for each question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []
        rendered = RenderService._rendered

        async def slowly(service: RenderService, data: bytes) -> bytes:
            self.asked.append(service._node)
            await asyncio.sleep(self.seconds)
            return await rendered(service, data)

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


PAGE = "hello world, how are you? " * 8_000


async def test_answers_do_not_wait_for_many_renderings(nats: NatsServer) -> None:
    async with scripted_fleet(nats, Script(answer)) as fleet:
        body = {"model": "cortex-demo", "prompt": PAGE}
        assert (await fleet.client.post("/tokenize", json=body)).status_code == 200
        asking = [asyncio.create_task(fleet.client.post("/tokenize", json=body)) for _ in range(60)]
        await asyncio.sleep(0.1)
        assert (await fleet.chat(max_tokens=2)).status_code == 200
        assert sum(not task.done() for task in asking) > 30
        assert {said.status_code for said in await asyncio.gather(*asking)} == {200}


@pytest.mark.parametrize("limit", ["MAX_WAITING", "MAX_WAITING_BYTES"])
async def test_what_waits_on_a_node_is_bounded(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(rendering, limit, {"MAX_WAITING": 3, "MAX_WAITING_BYTES": 900_000}[limit])
    async with scripted_fleet(nats, Script(answer)) as fleet:
        body = {"model": "cortex-demo", "prompt": PAGE}
        asking = [fleet.client.post("/tokenize", json=body) for _ in range(12)]
        said = await asyncio.gather(*asking)
        statuses = Counter(one.status_code for one in said)
        assert set(statuses) == {200, 429}
        refused = next(one for one in said if one.status_code == 429)
        assert "prompts of" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "2"
        assert (await fleet.client.post("/tokenize", json=body)).status_code == 200


async def test_a_node_with_room_is_asked_next(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = RenderService._check_room

    def full(service: RenderService) -> None:
        if service._node == "n1":
            raise FleetError(ErrorCode.OVERLOADED, "It is full.", retry_after_seconds=2)
        check(service)

    monkeypatch.setattr(RenderService, "_check_room", full)
    async with scripted_fleet(nats, Script(), nodes=2) as fleet:
        body = {"model": "cortex-demo", "prompt": "hi"}
        assert (await fleet.client.post("/tokenize", json=body)).status_code == 200


async def test_nothing_is_rendered_for_gateways_that_wait_no_longer(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(rendering, "BYTES_PER_SECOND", 1e9)
    done = 0
    render = ModelTexts.render

    async def slowly(*args: Any) -> bytes:
        nonlocal done
        done += 1
        await asyncio.sleep(0.15)
        return await render(*args)

    monkeypatch.setattr(ModelTexts, "render", slowly)
    async with scripted_fleet(nats, Script()) as fleet:
        body = {"model": "cortex-demo", "prompt": "hi"}
        asking = [asyncio.create_task(fleet.client.post("/tokenize", json=body)) for _ in range(20)]
        await until(lambda: done)
        for task in asking:
            task.cancel()
        await asyncio.sleep(1.0)
        assert done <= 6
        assert (await fleet.client.post("/tokenize", json=body)).status_code == 200
