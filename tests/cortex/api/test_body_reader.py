"""Reading bodies: what counts until when, and whose failure whom it concerns."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cortex.api import http
from cortex.api.body_budget import BodyBudget
from cortex.api.http import LARGE_BYTES, MAX_BODY_BYTES, BodyReader, ClientGone
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

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

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

    async def look(_: Screener, body: bytes, on_turn: Callable[[bool], object]) -> None:
        on_turn(True)
        await may_go_on.wait()
        if is_bad:
            raise FleetError(ErrorCode.INVALID_REQUEST, "It has too many values.")

    monkeypatch.setattr(Screener, "check", look)
    monkeypatch.setattr(Screener, "has_to_look", staticmethod(lambda _: True))
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

    def look(_: int) -> bool:
        steps.append("looked at")
        asyncio.get_running_loop().call_soon(steps.append, "others")
        return False

    monkeypatch.setattr(Screener, "has_to_look", staticmethod(look))
    sender, reader = Sender(), BodyReader()
    sender.send(b"x" * size, more=False)
    await reader.read(scope("10.0.0.1"), sender.receive)
    assert steps == ["looked at", "others"]
    await reader.close()


MANY = b'{"a":"' + b"b," * 60_000 + b'"}'


class Queue:
    """Screeners of which the first body is looked at until the others may be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = asyncio.Event()
        self.turns = 0
        monkeypatch.setattr(Screener, "_ask", self._ask)

    async def _ask(self, _: bytes) -> tuple[str, str]:
        self.turns += 1
        await self.may_go_on.wait()
        return "", ""


def reading(reader: BodyReader, address: str, sender: Sender) -> asyncio.Task[bytes]:
    return asyncio.create_task(reader.read(scope(address), sender.receive))


async def test_what_waits_to_be_looked_at_gives_way_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = Queue(monkeypatch)
    budget = BodyBudget(4 * len(MANY))
    reader = BodyReader(budget)
    hogs = []
    for _ in range(4):
        sender = Sender()
        sender.send(MANY, more=False)
        hogs.append(reading(reader, "10.0.0.1", sender))
        await until(lambda: budget.held_bytes == len(hogs) * len(MANY))
    await until(lambda: queue.turns == 1)
    guest = Sender()
    guest.send(b"{}", more=False)
    assert await reader.read(scope("10.0.0.2"), guest.receive) == b"{}"
    with pytest.raises(FleetError, match="The address of this one holds the most"):
        await hogs[3]
    queue.may_go_on.set()
    assert await asyncio.gather(*hogs[:3]) == [MANY] * 3
    assert budget.held_bytes == 0
    await reader.close()


@pytest.mark.parametrize("place", [0, 1], ids=["looked at", "waiting"])
async def test_bodies_of_clients_that_have_left_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    queue = Queue(monkeypatch)
    budget = BodyBudget()
    reader = BodyReader(budget)
    senders = [Sender(), Sender()]
    tasks = []
    for sender in senders:
        sender.send(MANY, more=False)
        tasks.append(reading(reader, "10.0.0.1", sender))
    await until(lambda: queue.turns == 1)
    senders[place].leave()
    with pytest.raises(ClientGone):
        await tasks[place]
    queue.may_go_on.set()
    assert await tasks[1 - place] == MANY
    assert budget.held_bytes == 0
    await reader.close()
