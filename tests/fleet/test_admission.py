"""Who is let in, when, and how quickly the others are told."""

import asyncio
import contextlib
import functools
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from cortex.dispatch.request_queue import RequestQueue
from protocol import codec, subjects
from protocol.bus import Bus
from protocol.frames import Accepted
from protocol.job import Priority
from tests.support.fleet import MODEL, TestFleet, chat_body, scripted_fleet, spied
from tests.support.nats import NatsServer
from tests.support.scripted import Script
from tests.support.waiting import until
from tests.support.words import answer

pytestmark = pytest.mark.xdist_group("wall_clock")


async def test_a_full_line_is_a_429_with_the_numbers(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = functools.partial(RequestQueue, max_waiting_of_tenant=20)
    monkeypatch.setattr("cortex.dispatch.admission.RequestQueue", short)
    script = Script(answer, slots=1, step_seconds=0.02)
    async with scripted_fleet(nats, script) as fleet:
        dispatcher = fleet.gateway.dispatcher
        tasks = [asyncio.create_task(fleet.chat(max_tokens=400)) for _ in range(4)]
        await asyncio.sleep(1.0)  # the slot and the hand-over are taken
        tasks += [asyncio.create_task(fleet.chat(max_tokens=400)) for _ in range(30)]
        await until(lambda: dispatcher.waiting == 20, what="a full line")
        refused = await fleet.chat()
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert "20 of them yours" in refused.json()["error"]["message"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: dispatcher.waiting == dispatcher.in_flight == 0)


async def test_a_tier_goes_before_or_after_what_waits(nats: NatsServer) -> None:
    script = Script(answer, slots=1, step_seconds=0.01)
    ended: list[str] = []
    async with scripted_fleet(nats, script) as fleet:
        dispatcher = fleet.gateway.dispatcher
        (engine,) = script.engines

        async def ask(tier: str) -> None:
            assert (await fleet.chat(max_tokens=20, service_tier=tier)).status_code == 200
            ended.append(tier)

        async def all_known(number: int) -> None:
            await until(
                lambda: dispatcher.in_flight + dispatcher.waiting == number,
                what=f"{number} requests in the line or handed over",
            )

        engine.paused = True  # nothing ends before all of them have come
        before = [asyncio.create_task(fleet.chat(max_tokens=40)) for _ in range(4)]
        await all_known(4)
        await until(lambda: dispatcher.waiting >= 1, what="the slot and the hand-over are taken")
        tasks = []
        for number, tier in enumerate(("flex", "default", "priority"), start=5):
            tasks.append(asyncio.create_task(ask(tier)))
            await all_known(number)
        engine.paused = False
        await asyncio.gather(*before, *tasks)
    assert ended == ["priority", "default", "flex"]


async def test_a_flood_of_one_tenant_leaves_room_for_another(nats: NatsServer) -> None:
    """First tokens of the guest, alone and beside a flood of ten times the capacity."""
    script = Script(answer, slots=8, step_seconds=0.004, prefill_steps=2)
    guest = {"Authorization": "Bearer guest"}
    async with scripted_fleet(nats, script, nodes=2) as fleet:
        solo = [await first_token(fleet, guest) for _ in range(20)]
        flood = [
            asyncio.create_task(keep_asking(fleet, {"Authorization": "Bearer flood"}))
            for _ in range(160)
        ]
        await until(lambda: fleet.gateway.dispatcher.waiting > 100, what="the flood")
        beside = [await first_token(fleet, guest) for _ in range(40)]
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    assert p95(beside) <= 3 * p95(solo) + 0.05, "gated loosely; `bench.flood` has the figure"


async def first_token(fleet: TestFleet, headers: dict[str, str]) -> float:
    began = time.monotonic()
    body = chat_body("Hi", stream=True, max_tokens=20)
    async with fleet.client.stream(
        "POST", "/v1/chat/completions", json=body, headers=headers
    ) as stream:
        seconds = 0.0
        async for line in stream.aiter_lines():
            if not seconds and line.startswith("data: {") and '"content":" ' in line:
                seconds = time.monotonic() - began
        return seconds


async def keep_asking(fleet: TestFleet, headers: dict[str, str]) -> None:
    async with httpx2.AsyncClient(base_url=fleet.url, timeout=60) as client:
        while True:
            await client.post(
                "/v1/chat/completions", json=chat_body("Hi", max_tokens=100), headers=headers
            )


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def test_a_job_whose_accepted_is_lost_comes_again(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    publish = Bus.publish

    async def lossy(bus: Bus, subject: str, data: bytes, **options: Any) -> None:
        if subject.startswith("cortex.reply.") and not lost:
            frame = codec.read_frame(data)
            if isinstance(frame, Accepted):
                lost.append(frame.ack)
                return
        await publish(bus, subject, data, **options)

    monkeypatch.setattr(Bus, "publish", lossy)
    script = Script(answer, step_seconds=0.002)
    async with scripted_fleet(nats, script) as fleet:
        whole = await fleet.chat(max_tokens=50)
        assert whole.status_code == 200
        assert lost
        assert len(script.engines[0].steps_of) == 1, "computed once"
        await until(lambda: _is_empty(fleet), what="the job was acknowledged")


async def _is_empty(fleet: TestFleet) -> bool:
    info = json.loads(await fleet.gateway.bus.request("$JS.API.STREAM.INFO.JOBS") or b"{}")
    return bool(info["state"]["messages"] == 0)


async def test_a_second_delivery_computes_nothing_twice(nats: NatsServer) -> None:
    """The same job once more in the stream, as a late acknowledgement makes it."""
    script = Script(answer, step_seconds=0.01)
    jobs = subjects.job(MODEL, Priority.NORMAL)
    async with scripted_fleet(nats, script, nodes=2) as fleet, spied(nats, jobs) as seen:
        task = asyncio.create_task(fleet.chat(max_tokens=100, seed=3))
        await until(lambda: seen and any(e.open for e in script.engines))
        await fleet.gateway.bus.request(jobs, seen[0])
        answered = await task
        assert answered.json()["usage"]["completion_tokens"] == 100
        await until(lambda: not any(e.open for e in script.engines), seconds=5)


def small_buffered() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    return sock


@contextlib.asynccontextmanager
async def asked_for_a_stream(
    fleet: TestFleet,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client on a socket of its own, which reads when it wants to."""
    host, port = fleet.url.removeprefix("http://").split(":")
    sock = small_buffered()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock)
    body = json.dumps(chat_body("Hi", stream=True)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    yield reader, writer
    writer.close()


async def test_a_client_that_does_not_read_is_given_up(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.runtime.http.connection.UNREAD_SECONDS", 0.5)
    script = Script(lambda add: ["x" * 50_000] * 2000, step_seconds=0.001)
    async with scripted_fleet(nats, script) as fleet, asked_for_a_stream(fleet):
        engine = script.engines[0]
        await until(lambda: engine.open == 1)
        await until(lambda: engine.open == 0, seconds=15, what="it is cancelled")
        assert sum(engine.steps_of.values()) < 2000
        await until(lambda: fleet.gateway.dispatcher.in_flight == 0)


async def test_a_client_that_reads_slowly_gets_its_stream(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine tells that there is room only when a third of what it keeps has been read."""
    monkeypatch.setattr("cortex.api.http.UNREAD_SECONDS", 0.25)
    monkeypatch.setattr("protocol.runtime.http.connection.UNREAD_SECONDS", 0.25)
    script = Script(lambda add: ["x" * 50_000] * 120, step_seconds=0.001)
    async with scripted_fleet(nats, script) as fleet, asked_for_a_stream(fleet) as (reader, _):
        got = 0
        while piece := await reader.read(65_536):
            got += piece.count(b"x")
            await asyncio.sleep(0.06)
            if b"[DONE]" in piece:
                break
        assert got > 120 * 50_000


async def test_choices_of_one_answer_wait_for_each_other(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are slots, for longer than others may wait for a turn."""
    monkeypatch.setattr("cortex.dispatch.wait_budget.QUEUE_SECONDS", 0.5)
    script = Script(answer, slots=2, step_seconds=0.02)
    async with scripted_fleet(nats, script) as fleet:
        said = await fleet.chat(n=8, max_tokens=30, temperature=1.0)
        assert said.status_code == 200, said.text
        assert len(said.json()["choices"]) == 8
        alone = [asyncio.create_task(fleet.chat(max_tokens=60)) for _ in range(8)]
        statuses = {(await one).status_code for one in alone}
        assert statuses == {200, 504}, "others do not wait for ever"
