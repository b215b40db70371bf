"""The waiting line: order, bounds, shares, and nobody's place leaks."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.dispatch.request_queue import ABOUT_SECONDS, RequestQueue, Ticket
from protocol.errors import ErrorCode, FleetError
from protocol.job import Priority


async def test_first_come_first_served_within_the_bound() -> None:
    line = RequestQueue("m")
    line.open(free_slots=1, live_gateways=1, slots=8)
    places = [line.join() for _ in range(5)]
    assert [p.has_turn for p in places] == [True, True, False, False, False], "twice the slots"
    places[0].leave()
    assert [p.has_turn for p in places] == [True, True, True, False, False]
    line.open(free_slots=8, live_gateways=4, slots=8)
    assert all(p.has_turn for p in places)


async def test_what_a_neuron_has_makes_room_for_the_next() -> None:
    line = RequestQueue("m")
    line.open(free_slots=0, live_gateways=1, slots=8)
    first, second = line.join(), line.join()
    assert (first.has_turn, second.has_turn) == (True, False)
    first.taken()
    first.taken()  # harmless
    assert second.has_turn
    assert line.handed_over == 1
    first.leave()
    assert line.handed_over == 1


async def test_nobody_goes_while_no_node_is_ready() -> None:
    line = RequestQueue("m")
    place = line.join()
    assert (place.has_turn, line.waiting) == (False, 1)
    waiting = asyncio.create_task(place.wait(10))
    line.open(free_slots=0, live_gateways=1, slots=1)
    await waiting
    assert place.has_turn


async def test_waiting_has_a_limit() -> None:
    place = RequestQueue("m").join()
    await place.wait(0.001)
    assert not place.has_turn


@pytest.mark.parametrize("of_tenant", [False, True])
async def test_a_full_line_refuses_at_once(of_tenant: bool) -> None:
    line = (
        RequestQueue("m", max_waiting_of_tenant=1)
        if of_tenant
        else RequestQueue("m", max_waiting=1)
    )
    waiting = line.join("a")
    with pytest.raises(FleetError) as caught:
        line.join("a")
    assert caught.value.error.code is ErrorCode.OVERLOADED
    assert caught.value.error.retry_after_seconds > 0
    if of_tenant:
        line.join("b")
    waiting.leave()
    line.join("a")


async def test_tenants_take_turns_and_a_higher_priority_goes_first() -> None:
    line = RequestQueue("m")
    flood = [line.join("flood", cost=1000) for _ in range(6)]
    others = [line.join("other", cost=1000) for _ in range(2)]
    urgent = line.join("flood", Priority.HIGH)
    order = served(line, [*flood, *others, urgent])
    assert order[0] is urgent
    assert {place.tenant for place in order[1:]} == {"flood", "other"}
    assert others[1] in order[:8], "a tenant that came late waits for a round, not for the flood"


async def test_who_sends_long_requests_has_fewer_of_them_served() -> None:
    line = RequestQueue("m")
    places = [line.join("long", cost=8192) for _ in range(20)]
    places += [line.join("short", cost=1024) for _ in range(80)]
    begun = served(line, places)[:45]
    tokens = Counter[str]()
    for place in begun:
        tokens[place.tenant] += place.cost
    assert 0.5 < tokens["long"] / tokens["short"] < 2


def served(line: RequestQueue, places: list[Ticket]) -> list[Ticket]:
    """The order in which they get their turn, one at a time."""
    line.open(free_slots=0, live_gateways=1, slots=1000)
    order: list[Ticket] = []
    while len(order) < len(places):
        (place,) = (p for p in places if p.is_handed_over)
        order.append(place)
        place.taken()
    return order


async def test_beside_others_nobody_holds_more_than_three_quarters() -> None:
    now = [0.0]
    line = RequestQueue("m", clock=lambda: now[0])
    line.open(free_slots=8, live_gateways=1, slots=8)
    alone = [line.join("flood") for _ in range(8)]
    assert all(p.has_turn for p in alone), "alone it may have them all"
    for place in alone:
        place.leave()
    guest = line.join("guest")
    guest.leave()
    flood = [line.join("flood") for _ in range(20)]
    for place in flood:
        place.taken()
    assert sum(p.has_turn for p in flood) == 6
    assert line.join("guest").has_turn, "at once, beside the flood"
    now[0] = ABOUT_SECONDS + 1
    later = [line.join("flood") for _ in range(3)]
    assert not any(p.has_turn for p in later), "the guest is about as long as it holds a slot"


ACTIONS = st.sampled_from(["join", "leave", "taken", "open", "shut"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 9), st.sampled_from("ab"))))
def test_places_are_conserved(actions: list[tuple[str, int, str]]) -> None:
    line = RequestQueue("m", max_waiting=1000)
    bound = slots = 0
    present: list[Ticket] = []
    for action, number, tenant in actions:
        match action:
            case "join":
                present.append(line.join(tenant, cost=number * 500))
            case "leave" if present:
                place = present.pop(number % len(present))
                place.leave()
                place.leave()  # harmless
            case "taken" if present:
                present[number % len(present)].taken()
            case "open":
                slots = number
                line.open(number, 2, slots)
                bound = max(1, number)
            case "shut":
                line.shut()
                bound = 0
        for tenant_now in "ab":
            turns = [p.has_turn for p in present if p.tenant == tenant_now]
            assert turns == sorted(turns, reverse=True), "in order within a tenant"
        assert line.handed_over == sum(p.is_handed_over for p in present)
        assert line.waiting == sum(not p.has_turn for p in present)
        if line.handed_over < bound:  # then whoever waits has as much as it may hold
            holds = Counter(p.tenant for p in present if p.has_turn)
            for place in present:
                assert place.has_turn or holds[place.tenant] >= max(1, int(0.75 * slots))
    for place in present:
        place.leave()
    assert (line.handed_over, line.waiting) == (0, 0)
