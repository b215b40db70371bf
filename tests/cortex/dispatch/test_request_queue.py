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
    queue = RequestQueue("m")
    queue.open(free_slots=1, live_gateways=1, slots=8)
    places = [queue.enqueue() for _ in range(5)]
    assert [p.has_turn for p in places] == [True, True, False, False, False], "twice the slots"
    places[0].cancel()
    assert [p.has_turn for p in places] == [True, True, True, False, False]
    queue.open(free_slots=8, live_gateways=4, slots=8)
    assert all(p.has_turn for p in places)


async def test_what_a_neuron_has_makes_room_for_the_next() -> None:
    queue = RequestQueue("m")
    queue.open(free_slots=0, live_gateways=1, slots=8)
    first, second = queue.enqueue(), queue.enqueue()
    assert (first.has_turn, second.has_turn) == (True, False)
    first.accepted()
    first.accepted()  # harmless
    assert second.has_turn
    assert queue.handed_over == 1
    first.cancel()
    assert queue.handed_over == 1


async def test_nobody_goes_while_no_node_is_ready() -> None:
    queue = RequestQueue("m")
    ticket = queue.enqueue()
    assert (ticket.has_turn, queue.waiting) == (False, 1)
    waiting = asyncio.create_task(ticket.wait(10))
    queue.open(free_slots=0, live_gateways=1, slots=1)
    await waiting
    assert ticket.has_turn


async def test_waiting_has_a_limit() -> None:
    ticket = RequestQueue("m").enqueue()
    await ticket.wait(0.001)
    assert not ticket.has_turn


@pytest.mark.parametrize("of_tenant", [False, True])
async def test_a_full_line_refuses_at_once(of_tenant: bool) -> None:
    queue = (
        RequestQueue("m", max_waiting_of_tenant=1)
        if of_tenant
        else RequestQueue("m", max_waiting=1)
    )
    waiting = queue.enqueue("a")
    with pytest.raises(FleetError) as caught:
        queue.enqueue("a")
    assert caught.value.error.code is ErrorCode.OVERLOADED
    assert caught.value.error.retry_after_seconds > 0
    if of_tenant:
        queue.enqueue("b")
    waiting.cancel()
    queue.enqueue("a")


async def test_tenants_take_turns_and_a_higher_priority_goes_first() -> None:
    queue = RequestQueue("m")
    flood = [queue.enqueue("flood", cost=1000) for _ in range(6)]
    others = [queue.enqueue("other", cost=1000) for _ in range(2)]
    urgent = queue.enqueue("flood", Priority.HIGH)
    order = served(queue, [*flood, *others, urgent])
    assert order[0] is urgent
    assert {ticket.tenant for ticket in order[1:]} == {"flood", "other"}
    assert others[1] in order[:8], "a tenant that came late waits for a round, not for the flood"


async def test_who_sends_long_requests_has_fewer_of_them_served() -> None:
    queue = RequestQueue("m")
    places = [queue.enqueue("long", cost=8192) for _ in range(20)]
    places += [queue.enqueue("short", cost=1024) for _ in range(80)]
    begun = served(queue, places)[:45]
    tokens = Counter[str]()
    for ticket in begun:
        tokens[ticket.tenant] += ticket.cost
    assert 0.5 < tokens["long"] / tokens["short"] < 2


def served(queue: RequestQueue, places: list[Ticket]) -> list[Ticket]:
    """The order in which they get their turn, one at a time."""
    queue.open(free_slots=0, live_gateways=1, slots=1000)
    order: list[Ticket] = []
    while len(order) < len(places):
        (ticket,) = (p for p in places if p.is_handed_over)
        order.append(ticket)
        ticket.accepted()
    return order


async def test_beside_others_nobody_holds_more_than_three_quarters() -> None:
    now = [0.0]
    queue = RequestQueue("m", clock=lambda: now[0])
    queue.open(free_slots=8, live_gateways=1, slots=8)
    alone = [queue.enqueue("flood") for _ in range(8)]
    assert all(p.has_turn for p in alone), "alone it may have them all"
    for ticket in alone:
        ticket.cancel()
    guest = queue.enqueue("guest")
    guest.cancel()
    flood = [queue.enqueue("flood") for _ in range(20)]
    for ticket in flood:
        ticket.accepted()
    assert sum(p.has_turn for p in flood) == 6
    assert queue.enqueue("guest").has_turn, "at once, beside the flood"
    now[0] = ABOUT_SECONDS + 1
    later = [queue.enqueue("flood") for _ in range(3)]
    assert not any(p.has_turn for p in later), "the guest is about as long as it holds a slot"


ACTIONS = st.sampled_from(["join", "leave", "taken", "open", "shut"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 9), st.sampled_from("ab"))))
def test_places_are_conserved(actions: list[tuple[str, int, str]]) -> None:
    queue = RequestQueue("m", max_waiting=1000)
    bound = slots = 0
    present: list[Ticket] = []
    for action, number, tenant in actions:
        match action:
            case "join":
                present.append(queue.enqueue(tenant, cost=number * 500))
            case "leave" if present:
                ticket = present.pop(number % len(present))
                ticket.cancel()
                ticket.cancel()  # harmless
            case "taken" if present:
                present[number % len(present)].accepted()
            case "open":
                slots = number
                queue.open(number, 2, slots)
                bound = max(1, number)
            case "shut":
                queue.shut()
                bound = 0
        for tenant_now in "ab":
            turns = [p.has_turn for p in present if p.tenant == tenant_now]
            assert turns == sorted(turns, reverse=True), "in order within a tenant"
        assert queue.handed_over == sum(p.is_handed_over for p in present)
        assert queue.waiting == sum(not p.has_turn for p in present)
        if queue.handed_over < bound:  # then whoever waits has as much as it may hold
            holds = Counter(p.tenant for p in present if p.has_turn)
            for ticket in present:
                assert ticket.has_turn or holds[ticket.tenant] >= max(1, int(0.75 * slots))
    for ticket in present:
        ticket.cancel()
    assert (queue.handed_over, queue.waiting) == (0, 0)
