"""The planner against simulated fleets: its rules hold on random ones, and it does not thrash."""

import itertools
import os
import statistics
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.placement.eviction import Strategy
from cortex.placement.fit import EXTRA_IDLE_SECONDS, DeviceView, Need, NodeView, ResidentView
from cortex.placement.planner import LOADS_AT_ONCE, Want, plan
from tests.support.placement_clients import Client
from tests.support.placement_parts import TICK, Event, Happening, ModelSpec, Request
from tests.support.placement_world import World
from tests.support.traces import (
    BOUND_SECONDS,
    batched,
    in_request_order,
    node_for,
    optimum,
    rotation,
    zipf,
)

SCHEDULES = int(os.environ.get("SCHEDULES", "50"))
GIB = 1 << 30
LOAD_SECONDS = 5.0


def want(model: str, waited: float, **more: object) -> Want:
    return Want(Need(model, 10), waited, 30.0, LOAD_SECONDS, **more)  # type: ignore[arg-type]


def one_node(
    *residents: ResidentView, recent_load_seconds: float = 0.0, free: int | None = None
) -> NodeView:
    if free is None:
        free = 12 - sum(r.bytes_each for r in residents)
    return NodeView(
        "n",
        (DeviceView(12, free),),
        residents,
        files=frozenset({"new", "first", "second"}),
        recent_load_seconds=recent_load_seconds,
    )


def loads(*wants: Want, node: NodeView, taken: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    made = plan(wants, [node], taken, Strategy.LRU)
    return [(load.model, *load.victims) for load in made.loads]


IDLE = ResidentView("old", (0,), 10, idle_seconds=10.0, ready_seconds=1000.0)
BUSY = IDLE._replace(running=1, idle_seconds=0.0)


def test_what_is_idle_goes_at_once_what_is_busy_when_it_must() -> None:
    assert loads(want("new", 0.0), node=one_node(IDLE)) == [("new", "old")]
    assert loads(want("new", 0.0), node=one_node(BUSY)) == []
    assert loads(want("new", 24.0), node=one_node(BUSY)) == [("new", "old")], "or it is too late"


def test_the_more_a_node_has_loaded_the_longer_requests_gather() -> None:
    node = one_node(IDLE, recent_load_seconds=10.0)
    assert loads(want("new", 14.0), node=node) == []
    assert loads(want("new", 15.0), node=node) == [("new", "old")]
    cold = one_node(IDLE._replace(idle_seconds=15.0), recent_load_seconds=10.0)
    assert loads(want("new", 0.0), node=cold) == [("new", "old")]
    flooded = one_node(IDLE, recent_load_seconds=60.0)
    assert loads(want("new", 24.0), node=flooded) == [("new", "old")], "the bound comes first"


def test_what_only_the_waiting_have_used_goes_at_once() -> None:
    node = one_node(IDLE, recent_load_seconds=60.0)
    mine = want("new", 0.0, released={"old": 10.0})
    assert loads(want("new", 0.0), node=node) == []
    assert loads(mine, node=node) == [("new", "old")]
    assert loads(mine, node=one_node(BUSY, recent_load_seconds=60.0)) == []
    later = one_node(IDLE._replace(idle_seconds=5.0), recent_load_seconds=60.0)
    assert loads(mine, node=later) == [], "somebody at another gateway has used it since"
    (load,) = plan([mine], [node], (), Strategy.LRU).loads
    assert load.is_free
    (load,) = plan([want("new", 24.0)], [node], (), Strategy.LRU).loads
    assert not load.is_free


def test_by_class_a_higher_one_does_not_go_because_it_is_colder() -> None:
    low = ResidentView("low", (0,), 5, 50, idle_seconds=1.0, ready_seconds=100.0)
    high = ResidentView("high", (0,), 5, 100, idle_seconds=1000.0, ready_seconds=1000.0)
    node = one_node(low, high, recent_load_seconds=10.0)
    small = Want(Need("new", 5), 1.0, 30.0, LOAD_SECONDS)
    assert plan([small], [node], [], Strategy.PRIORITY).loads == ()
    for waited, strategy in ((15.0, Strategy.PRIORITY), (1.0, Strategy.LRU)):
        (load,) = plan([small._replace(waited_seconds=waited)], [node], [], strategy).loads
        assert load.victims == ("low" if strategy is Strategy.PRIORITY else "high",)


def test_those_that_wait_behind_count() -> None:
    """Two loads one after the other have to be in time."""
    first, second = want("first", 17.0), want("second", 16.0)
    assert loads(first, node=one_node(BUSY)) == []
    assert loads(second, first, node=one_node(BUSY)) == [("first", "old")]


def test_beside_a_load_only_what_needs_no_victim() -> None:
    assert loads(want("new", 29.0), node=one_node(IDLE), taken=("n",)) == []
    loading = IDLE._replace(is_ready=False)
    for count in (1, LOADS_AT_ONCE - 1):
        beside = one_node(loading, IDLE._replace(model="older"))._replace(loading=count)
        assert loads(want("new", 29.0), node=beside) == [], "it would have to displace one"
        with_room = one_node(loading, free=11)._replace(loading=count)
        assert loads(want("new", 0.0), node=with_room) == [("new",)]
    assert loads(want("new", 29.0), node=with_room._replace(loading=LOADS_AT_ONCE)) == []


def test_what_has_room_is_loaded_at_once_side_by_side() -> None:
    wants = [want(model, 0.0)._replace(need=Need(model, 4)) for model in ("new", "first", "second")]
    assert loads(*wants, node=one_node(free=12)) == [("first",), ("new",), ("second",)]
    assert loads(*wants, node=one_node(free=11)) == [("first",), ("new",)]


def test_loads_that_need_nothing_do_not_hold_up_an_urgent_one() -> None:
    loading = ResidentView("b", (0,), 2, is_ready=False)
    node = one_node(loading, IDLE._replace(bytes_each=6), free=4)._replace(loading=1)
    small = want("second", 0.0)._replace(need=Need("second", 4))
    assert loads(small, node=node) == [("second",)]
    urgent = want("first", 29.0)
    assert loads(urgent, small, node=node) == [], "it would prolong what the first waits for"
    assert loads(urgent, small, node=node._replace(loading=0)) == [("first", "old")]


def test_another_load_goes_to_the_node_that_loads_less() -> None:
    nodes = [one_node(free=12)._replace(name=name, loading=name == "a") for name in ("a", "b")]
    made = plan([want("new", 0.0)], nodes, (), Strategy.LRU)
    assert [load.node for load in made.loads] == ["b"]


def test_another_replica_only_for_those_who_keep_waiting_and_never_for_a_busy_one() -> None:
    node = one_node()
    assert loads(want("new", 4.0, replicas=1, max_replicas=2), node=node) == []
    assert loads(want("new", 6.0, replicas=1, max_replicas=2), node=node) == [("new",)]
    assert loads(want("new", 6.0, replicas=1), node=node) == [], "no more than it may have"
    assert loads(want("new", 29.0, replicas=1, max_replicas=2), node=one_node(BUSY)) == []


def test_what_has_been_idle_for_too_long_is_unloaded() -> None:
    expired = IDLE._replace(idle_allowed_seconds=60.0, idle_seconds=100.0)
    made = plan([], [one_node(expired)], [], Strategy.LRU)
    assert [(unload.model, unload.why) for unload in made.unloads] == [("old", "idle for 100 s")]
    for kept in (IDLE, expired._replace(is_pinned=True), expired._replace(min_replicas=1)):
        assert not plan([], [one_node(kept)], [], Strategy.LRU).unloads


def test_what_goes_is_not_started_anew() -> None:
    expired = IDLE._replace(idle_allowed_seconds=60.0, idle_seconds=100.0, loads_since=9)
    made = plan([], [one_node(expired)], [], Strategy.LRU, defrag_after=5)
    assert (len(made.unloads), made.recycles) == (1, ())


def test_replicas_that_go_at_the_same_time_leave_enough() -> None:
    """Each might go while the other stays."""
    pair = IDLE._replace(idle_allowed_seconds=60.0, idle_seconds=100.0, replicas=2, min_replicas=1)
    nodes = [
        one_node(pair)._replace(name="a"),
        one_node(pair._replace(idle_seconds=200.0))._replace(name="b"),
    ]
    assert [unload.node for unload in plan([], nodes, [], Strategy.LRU).unloads] == ["b"]
    both = [want("first", 20.0), want("second", 20.0)]
    made = plan(
        both,
        [node._replace(files=frozenset({"first", "second"})) for node in nodes],
        [],
        Strategy.LRU,
    )
    assert [load.victims for load in made.loads] == [("old",)]
    extra = IDLE._replace(idle_seconds=EXTRA_IDLE_SECONDS, replicas=3)
    nodes = [one_node(extra)._replace(name=name) for name in "abc"]
    assert len(plan([], nodes, [], Strategy.LRU).unloads) == 2, "and one that stays for good"


# -- random fleets -----------------------------------------------------------------------------

MODELS = [f"m{number}" for number in range(12)]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, list[Request]]:
    """Three memory sizes, one to four devices that need not be equal, twelve models, one of them
    pinned; up to forty requests; nodes that die and return, and are drained."""
    more = st.lists(st.sampled_from([0, 4, 8, 16, 32]), max_size=3)
    nodes = {
        f"n{number}": (size, *draw(st.one_of(st.just([]), st.just([size]), more)))
        for number, size in enumerate(draw(st.permutations([8, 16, 32])))
    }
    models = {}
    for name in MODELS:
        need = Need(
            name,
            draw(st.integers(2, 10)),
            draw(st.sampled_from([1, 1, 1, 2, 3])),
            residency=draw(st.sampled_from([50, 100, 100, 200])),
            nodes=frozenset(draw(st.sampled_from([(), (), ("n0",), ("n1", "n2")]))),
        )
        models[name] = ModelSpec(
            need,
            draw(st.sampled_from([0.5, 2.0, 6.0])),
            draw(st.sampled_from([1, 4])),
            idle_limit_seconds=draw(st.sampled_from([0.0, 0.0, 10.0])),
            max_replicas=draw(st.sampled_from([1, 1, 3])),
            files=draw(st.sampled_from([None, None, frozenset(), frozenset({"n1"})])),
            fails=draw(st.sampled_from([0, 0, 0, 1, 3])),
        )
    pet = draw(st.sampled_from(MODELS))
    smallest = models[pet].need._replace(devices=1, bytes_each=3, nodes=frozenset())
    models[pet] = models[pet]._replace(need=smallest, pinned_on=frozenset({"n0"}))
    kept = draw(st.sampled_from(MODELS))
    models[kept] = models[kept]._replace(min_replicas=draw(st.sampled_from([1, 2])), max_replicas=3)
    requests = draw(
        st.lists(
            st.builds(
                Request,
                at=st.floats(0, 60),
                model=st.sampled_from(MODELS),
                seconds=st.sampled_from([0.2, 1.0, 10.0]),
            ),
            min_size=5,
            max_size=40,
        )
    )
    world = World(
        nodes,
        models,
        bound_seconds=20.0,
        strategy=draw(st.sampled_from(list(Strategy))),
        defrag_after=draw(st.sampled_from([0, 2, 5])),
        events=draw(st.lists(events(), max_size=6)),
    )
    return world, requests


def events() -> st.SearchStrategy[Event]:
    times, nodes = st.floats(0, 60), st.sampled_from(["n0", "n1", "n2"])
    return st.builds(Event, times, nodes, st.sampled_from(list(Happening)))


def check_random_worlds(schedules: int) -> None:
    @settings(
        max_examples=schedules,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(worlds())
    def holds(made: tuple[World, list[Request]]) -> None:
        world, requests = made
        world.run(requests)
        assert sorted(ended.request for ended in world.ended) == sorted(requests)
        world.settle()

    holds()


def test_the_rules_hold_on_random_fleets() -> None:
    check_random_worlds(SCHEDULES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_rules_hold_on_ten_thousand_random_fleets() -> None:
    check_random_worlds(10_000)


def waits(world: World, client: str) -> list[float]:
    return [ended.waited for ended in world.ended if ended.request.client == client]


@pytest.mark.parametrize(("models", "room"), [("AB", 1), ("ABC", 1), ("ABC", 2), ("AABAC", 2)])
def test_one_client_never_waits_for_nobody(models: str, room: int) -> None:
    world = node_for(room, LOAD_SECONDS, BOUND_SECONDS)
    world.run([], [Client("me", itertools.islice(itertools.cycle(models), 60))])
    assert max(waits(world, "me")) <= LOAD_SECONDS + 3 * TICK


def test_clients_that_share_a_node_are_not_swapped_for_every_request() -> None:
    world = node_for(1, LOAD_SECONDS, BOUND_SECONDS)
    world.run([], [Client(name, itertools.repeat(name, 600)) for name in "AB"])
    assert world.loads.total() <= 0.1 * 1200
    assert max(ended.waited for ended in world.ended) <= BOUND_SECONDS


def test_a_client_that_takes_turns_leaves_time_to_another() -> None:
    """One goes from A to B and back, another one asks for C now and then."""
    world = node_for(1, LOAD_SECONDS, BOUND_SECONDS)
    agent = Client("agent", itertools.islice(itertools.cycle("AB"), 100))
    world.run([], [agent, Client("other", itertools.repeat("C", 40), pause_seconds=10.0)])
    assert all(ended.is_served for ended in world.ended)
    assert statistics.median(waits(world, "agent")) <= LOAD_SECONDS + 3 * TICK
    assert max(ended.waited for ended in world.ended) <= BOUND_SECONDS


@pytest.mark.parametrize("trace", [rotation, zipf])
def test_models_that_take_turns_are_not_swapped_for_every_request(
    trace: Callable[[], tuple[World, list[Request], int]],
) -> None:
    world, requests, room = trace()
    world.run(requests)
    assert all(ended.is_served and ended.waited <= BOUND_SECONDS for ended in world.ended)
    assert world.loads.total() <= 0.5 * in_request_order(requests, room)
    assert world.loads.total() <= 1.2 * optimum(batched(requests, room), room)
