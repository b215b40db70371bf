"""The waiting line: order, bounds, and nobody's place leaks."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.waiting import Line
from protocol.errors import ErrorCode, FleetError


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served_within_the_bound() -> None:
    line = Line("m")
    line.open(free_slots=1, live_gateways=1)
    order: list[int] = []

    async def come(number: int) -> None:
        await line.turn()
        order.append(number)

    tasks = [asyncio.create_task(come(n)) for n in range(5)]
    await _settled()
    assert order == [0, 1], "twice the free slots are handed over ahead"
    line.leave()
    await _settled()
    assert order == [0, 1, 2]
    line.open(free_slots=8, live_gateways=4)
    await _settled()
    assert order == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


async def test_nobody_goes_while_no_node_is_ready() -> None:
    line = Line("m")
    task = asyncio.create_task(line.turn())
    await _settled()
    assert (task.done(), line.waiting) == (False, 1)
    line.open(free_slots=0, live_gateways=1)
    await task


async def test_a_full_line_refuses_at_once() -> None:
    line = Line("m", max_waiting=1)
    waiting = asyncio.create_task(line.turn())
    await _settled()
    with pytest.raises(FleetError) as caught:
        await line.turn()
    assert caught.value.error.code is ErrorCode.OVERLOADED
    assert caught.value.error.retry_after_seconds > 0
    waiting.cancel()
    await _settled()
    line.check_room()


@given(st.lists(st.sampled_from(["come", "leave", "cancel", "room", "shut"]), max_size=40))
@settings(deadline=None)
def test_places_are_conserved(actions: list[str]) -> None:
    async def play() -> None:
        line = Line("m", max_waiting=1000)
        line.open(2, 1)
        waiting: list[asyncio.Task[None]] = []
        holding = 0
        for action in actions:
            match action:
                case "come":
                    waiting.append(asyncio.create_task(line.turn()))
                case "leave" if holding:
                    holding -= 1
                    line.leave()
                case "cancel" if waiting:
                    waiting.pop(0).cancel()
                case "room":
                    line.open(3, 1)
                case "shut":
                    line.shut()
            if action != "cancel":  # a turn and a cancellation may meet in one tick
                await _settled()
            holding += sum(t.done() and not t.cancelled() for t in waiting)
            waiting = [t for t in waiting if not t.done()]
            assert holding <= 6
        await _settled()
        holding += sum(t.done() and not t.cancelled() for t in waiting)
        waiting = [t for t in waiting if not t.done()]
        for _ in range(holding):
            line.leave()
        line.open(500, 1)
        await _settled()
        assert all(task.done() for task in waiting), "whoever waits gets a turn in the end"
        assert line.waiting == 0

    asyncio.run(play())
