"""A gateway is gone when it is silent while everybody else is heard."""

import pytest

from neuron.service.jobs.gateway_liveness import GatewayLiveness
from protocol.timing import NORMAL

BEAT = NORMAL.heartbeat_seconds


class World:
    """Time passes in heartbeats, those of the gateway *a* and our own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.gateways = GatewayLiveness(lambda: self.now)

    def pass_time(self, seconds: float, *, with_a: bool, with_us: bool = True) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += BEAT
            if with_us:
                self.gateways.echo()
            if with_a:
                self.gateways.heard("a")


@pytest.fixture
def world() -> World:
    world = World()
    world.pass_time(10.0, with_a=True)
    return world


def test_who_beats_is_there(world: World) -> None:
    assert not world.gateways.is_gone("a")
    assert world.gateways.is_gone("nobody")


def test_who_is_silent_is_gone(world: World) -> None:
    world.pass_time(NORMAL.gateway_gone_seconds - BEAT, with_a=False)
    assert not world.gateways.is_gone("a")
    world.pass_time(2 * BEAT, with_a=False)
    assert world.gateways.is_gone("a")


def test_nobody_is_gone_while_nothing_can_be_heard(world: World) -> None:
    world.pass_time(NORMAL.cut_off_seconds - BEAT, with_a=False, with_us=False)
    assert not world.gateways.is_gone("a")
    world.pass_time(2 * BEAT, with_a=False, with_us=False)
    assert world.gateways.is_gone("a"), "we are cut off, and others have taken over"


@pytest.mark.parametrize("how", ["reconnected", "a late echo"])
def test_after_an_interruption_everybody_has_time_to_be_heard(world: World, how: str) -> None:
    world.pass_time(3.0, with_a=False, with_us=False)
    if how == "reconnected":
        world.gateways.reconnected()
    world.pass_time(NORMAL.hearing_seconds - BEAT, with_a=False)
    assert not world.gateways.is_gone("a")
    world.pass_time(2 * BEAT, with_a=False)
    assert world.gateways.is_gone("a")


def test_a_gateway_that_is_new_here_is_not_gone_at_once() -> None:
    world = World()
    world.pass_time(2.0, with_a=False)
    assert not world.gateways.is_gone("a")
