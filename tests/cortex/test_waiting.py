"""The waiting line: order, bounds, and nobody's place leaks."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.waiting import Line, Place
from protocol.errors import ErrorCode, FleetError


async def test_first_come_first_served_within_the_bound() -> None:
    line = Line("m")
    line.open(free_slots=1, live_gateways=1)
    places = [line.join() for _ in range(5)]
    assert [p.has_turn for p in places] == [True, True, False, False, False], "twice the slots"
    places[0].leave()
    assert [p.has_turn for p in places] == [True, True, True, False, False]
    line.open(free_slots=8, live_gateways=4)
    assert all(p.has_turn for p in places)


async def test_nobody_goes_while_no_node_is_ready() -> None:
    line = Line("m")
    place = line.join()
    assert (place.has_turn, line.waiting) == (False, 1)
    waiting = asyncio.create_task(place.wait(10))
    line.open(free_slots=0, live_gateways=1)
    await waiting
    assert place.has_turn


async def test_waiting_has_a_limit() -> None:
    place = Line("m").join()
    await place.wait(0.001)
    assert not place.has_turn


async def test_a_full_line_refuses_at_once() -> None:
    line = Line("m", max_waiting=1)
    waiting = line.join()
    with pytest.raises(FleetError) as caught:
        line.join()
    assert caught.value.error.code is ErrorCode.OVERLOADED
    assert caught.value.error.retry_after_seconds > 0
    waiting.leave()
    line.join()


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "open", "shut"]), st.integers(0, 9))))
def test_places_are_conserved(actions: list[tuple[str, int]]) -> None:
    line = Line("m", max_waiting=1000)
    bound = 0
    present: list[Place] = []
    for action, number in actions:
        match action:
            case "join":
                present.append(line.join())
            case "leave" if present:
                place = present.pop(number % len(present))
                place.leave()
                place.leave()  # harmless
            case "open":
                line.open(number, 2)
                bound = max(1, number)
            case "shut":
                line.shut()
                bound = 0
        turns = [place.has_turn for place in present]
        assert turns == sorted(turns, reverse=True), "first come, first served"
        assert line.handed_over == sum(turns)
        assert line.waiting == len(turns) - sum(turns)
        assert not line.waiting or line.handed_over >= bound, "nobody waits beside free room"
    for place in present:
        place.leave()
    assert (line.handed_over, line.waiting) == (0, 0)
