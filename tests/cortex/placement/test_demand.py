"""What waits, over all gateways."""

import pytest

from cortex.placement.demand import Demands
from protocol import codec, keys
from protocol.placement import Wanted


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.demands = Demands(lambda: self.now)

    def wants(self, gateway: str, count: int, seconds: float, **released: float) -> None:
        wanted = Wanted("i", "m", gateway, count, seconds, 30.0, released)
        self.demands.key_changed(keys.wanted("m", gateway), codec.encode(wanted))


@pytest.fixture
def world() -> World:
    return World()


def test_ages_grow_on_our_own_clock(world: World) -> None:
    world.wants("g1", 2, 1.5, a=3.0)
    world.now += 2.0
    (demand,) = world.demands.by_model().values()
    assert (demand.waiting, demand.waited_seconds, demand.released) == (2, 3.5, {"a": 5.0})


def test_gateways_are_added_up(world: World) -> None:
    world.wants("g1", 2, 1.0, a=3.0)
    world.wants("g2", 1, 4.0, b=1.0)
    (demand,) = world.demands.by_model().values()
    assert (demand.waiting, demand.waited_seconds) == (3, 4.0)
    assert demand.released == {"a": 3.0, "b": 1.0}


def test_one_client_that_might_miss_something_is_enough(world: World) -> None:
    world.wants("g1", 2, 1.0, a=3.0)
    world.wants("g2", 1, 4.0)
    assert world.demands.by_model()["m"].released == {}
