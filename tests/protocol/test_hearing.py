"""Silence means something only to whoever hears their own heartbeat."""

import pytest

from protocol.bus import Hearing
from protocol.timing import NORMAL, Timing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("timing", [NORMAL, NORMAL.scaled(0.25)])
def test_who_has_no_echo_is_deaf_and_later_cut_off(clock: Clock, timing: Timing) -> None:
    hearing = Hearing(timing, clock)
    clock.now += timing.echo_seconds * 0.99
    assert not hearing.is_deaf
    clock.now += timing.echo_seconds * 0.02
    assert hearing.is_deaf
    assert not hearing.is_cut_off
    clock.now += timing.cut_off_seconds
    assert hearing.is_cut_off


def test_an_echo_in_time_changes_nothing(clock: Clock) -> None:
    hearing = Hearing(NORMAL, clock)
    for _ in range(10):
        clock.now += NORMAL.heartbeat_seconds
        assert hearing.echo() == 0.0
    assert hearing.since == 100.0
    assert hearing.deaf_seconds == 0.0


def test_a_late_echo_tells_how_long_nothing_was_heard(clock: Clock) -> None:
    hearing = Hearing(NORMAL, clock)
    clock.now += 4.0
    assert hearing.echo() == 4.0
    assert hearing.since == 104.0, "something may have been missed until now"
    assert not hearing.is_deaf


def test_a_reconnection_is_a_sign_of_life(clock: Clock) -> None:
    hearing = Hearing(NORMAL, clock)
    clock.now += 20.0
    hearing.reconnected()
    assert not hearing.is_deaf
    assert hearing.since == 120.0


def test_a_stall_of_our_own_is_not_silence_of_the_server(clock: Clock) -> None:
    hearing = Hearing(NORMAL, clock)
    clock.now += 20.0
    hearing.stalled()
    assert hearing.deaf_seconds == pytest.approx(NORMAL.echo_seconds), "no longer than overdue"
    assert not hearing.is_cut_off
    assert hearing.since == 120.0
    hearing.echo()
    assert not hearing.is_deaf, "it had only not been read"
