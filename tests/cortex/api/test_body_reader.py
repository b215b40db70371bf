"""Reading bodies: what counts until when, and whose failure whom it concerns."""

import asyncio
from typing import Any

import pytest

from cortex.api import http
from cortex.api.body_budget import BodyBudget, UnfinishedBody
from cortex.api.http import LARGE_BYTES, MAX_BODY_BYTES, BodyReader
from cortex.api.screening.screener import Screener
from protocol.errors import ErrorCode, FleetError
from tests.support.waiting import until

TIMEOUTS = ("SILENT_SECONDS", "BODY_SECONDS")


def scope(address: str) -> dict[str, Any]:
    return {"headers": [], "client": (address, 1)}


class Sender:
    """A client that sends what it is told to."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, body: bytes, *, more: bool = True) -> None:
        message = {"type": "http.request", "body": body, "more_body": more}
        self._messages.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        return await self._messages.get()


@pytest.mark.parametrize("which", TIMEOUTS)
@pytest.mark.parametrize("late", [-0.001, -0.0001, 0.0, 0.0001, 0.001])
async def test_a_body_may_give_way_in_the_tick_in_which_it_times_out(
    monkeypatch: pytest.MonkeyPatch, which: str, late: float
) -> None:
    monkeypatch.setattr(http, which, 0.05)
    budget, loop = BodyBudget(100), asyncio.get_running_loop()
    slow = budget.begin("a")
    budget.add(slow, b"x" * 90)
    reading = asyncio.create_task(http._receive(Sender().receive, slow, loop.time()))
    growing = budget.begin("b")
    failures: list[Exception] = []

    def grow() -> None:
        try:
            budget.add(growing, b"y" * 20)
        except Exception as error:
            failures.append(error)

    await asyncio.sleep(0)
    loop.call_at(loop.time() + 0.05 + late, grow)
    await asyncio.wait([reading])
    await until(lambda: growing.size == 20)
    assert not failures, "which would have been those of somebody else's request"
    error = reading.exception()
    assert error is None or isinstance(error, FleetError)


async def test_a_body_counts_until_it_has_been_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = asyncio.Event()
    is_bad = False

    async def look(screener: Screener, body: bytes) -> None:
        await may_go_on.wait()
        if is_bad:
            raise FleetError(ErrorCode.INVALID_REQUEST, "It has too many values.")

    monkeypatch.setattr(Screener, "check", look)
    budget = BodyBudget(1000)
    reader = BodyReader(budget)
    for is_bad in (False, True):
        may_go_on.clear()
        senders = [Sender() for _ in range(2)]
        tasks = [
            asyncio.create_task(reader.read(scope(f"10.0.0.{n}"), one.receive))
            for n, one in enumerate(senders)
        ]
        for one in senders:
            one.send(b"x" * 200)
            one.send(b"y" * 200, more=False)
        await until(lambda: budget.held_bytes == 800)
        await asyncio.sleep(0.02)
        assert budget.held_bytes == 800
        third = Sender()
        third.send(b"z" * 201)
        with pytest.raises(FleetError) as refused:
            await reader.read(scope("10.0.0.9"), third.receive)
        assert refused.value.error.code == ErrorCode.OVERLOADED
        gone = asyncio.create_task(reader.read(scope("10.0.0.8"), (last := Sender()).receive))
        last.send(b"z" * 100, more=False)
        await until(lambda: budget.held_bytes == 900)
        gone.cancel()
        await until(lambda: budget.held_bytes == 800)
        may_go_on.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.held_bytes == 0
        if is_bad:
            assert all(isinstance(one, FleetError) for one in done)
        else:
            assert done == [b"x" * 200 + b"y" * 200] * 2
    await reader.close()


@pytest.mark.parametrize("size", [LARGE_BYTES + 1, MAX_BODY_BYTES])
async def test_others_have_their_turn_between_the_steps_of_a_large_body(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    steps: list[str] = []

    def complete(budget: BodyBudget, body: UnfinishedBody) -> bytes:
        steps.append("copied")
        asyncio.get_running_loop().call_soon(steps.append, "others")
        return bytes(body.data)

    async def look(screener: Screener, body: bytes) -> None:
        steps.append("looked at")
        asyncio.get_running_loop().call_soon(steps.append, "others")

    monkeypatch.setattr(BodyBudget, "complete", complete)
    monkeypatch.setattr(Screener, "check", look)
    sender, reader = Sender(), BodyReader()
    sender.send(b"x" * size, more=False)
    await reader.read(scope("10.0.0.1"), sender.receive)
    assert steps == ["copied", "others", "looked at", "others"]
    await reader.close()
