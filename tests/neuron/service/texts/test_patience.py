"""When a process that has not answered has had enough time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from neuron.hardware.host import ProcessTime
from neuron.ipc.text_messages import Working
from neuron.service.texts.patience import (
    CLOCK_FACTOR,
    GRACE_SECONDS,
    IDLE_SECONDS,
    LEAST_CLOCK_SECONDS,
    LOAD_SECONDS,
    STOPPED_SECONDS,
    Patience,
    Verdict,
)

LOOK = 0.2
WORK = Working("tokenizer", 3.0)


def first(
    patience: Patience, share: float, *, stopped_at: float = 1e9, until: float = 200.0
) -> tuple[Verdict, float]:
    """The first verdict that is not to wait, and when, for a process that gets a *share* of a
    processor; it had 7 seconds before."""
    now, cpu = 0.0, 7.0
    while now < until:
        now += LOOK
        is_stopped = now > stopped_at
        cpu += 0.0 if is_stopped else share * LOOK
        verdict = patience.judge(now, ProcessTime(cpu, is_stopped))
        if verdict is not Verdict.WAIT:
            return verdict, now
    return Verdict.WAIT, now


def test_a_process_that_computes_is_blamed_after_its_processor_time() -> None:
    for share in (1.0, 0.5, 0.2):
        verdict, at = first(Patience(WORK, 0.0), share)
        assert verdict is Verdict.TOO_MUCH
        assert 3.0 <= at * share <= 3.0 + GRACE_SECONDS + 2 * LOOK


def test_nobody_is_blamed_for_a_process_that_gets_no_time() -> None:
    verdict, at = first(Patience(WORK, 0.0), 0.0)
    assert verdict is Verdict.STUCK
    assert at <= IDLE_SECONDS + 2 * LOOK
    verdict, at = first(Patience(WORK, 0.0), 0.01)
    assert verdict is Verdict.STUCK
    assert at <= max(LEAST_CLOCK_SECONDS, CLOCK_FACTOR * 3.0) + 2 * LOOK


def test_a_stopped_process_is_seen_at_once() -> None:
    for work in (WORK, Working("tokenizer.json", 0.0)):
        verdict, at = first(Patience(work, 0.0), 1.0, stopped_at=1.0)
        assert verdict is Verdict.STUCK
        assert at <= 1.0 + STOPPED_SECONDS + 2 * LOOK


def test_a_load_has_a_minute_by_the_clock() -> None:
    """Also on a disk that does not answer, where the process is to be replaced, not the model."""
    load = Working("tokenizer.json", 0.0)
    verdict, at = first(Patience(load, 0.0), 0.0)
    assert (verdict, at > LOAD_SECONDS) == (Verdict.STUCK, True)
    verdict, at = first(Patience(load, 0.0), 1.0)
    assert (verdict, at > LOAD_SECONDS) == (Verdict.TOO_MUCH, True)


@given(st.lists(st.tuples(st.floats(0.05, 0.4), st.floats(0.0, 1.0)), min_size=1, max_size=60))
def test_blame_needs_processor_time(steps: list[tuple[float, float]]) -> None:
    now, cpu = 0.0, 3.0
    patience = Patience(WORK, now)
    for seconds, share in steps:
        now, cpu = now + seconds, cpu + seconds * share
        verdict = patience.judge(now, ProcessTime(cpu, is_stopped=False))
        if verdict is Verdict.TOO_MUCH:
            assert cpu - 3.0 > WORK.cpu_seconds
            return


def test_each_work_begins_anew() -> None:
    patience = Patience(WORK, 0.0)
    for before, after in pairwise((0.0, 2.5, 5.0, 7.5)):
        patience.begin(WORK, before)
        for look in range(1, 12):
            now = before + look * LOOK
            assert patience.judge(now, ProcessTime(now, is_stopped=False)) is Verdict.WAIT
        assert after > before


def test_without_a_look_at_the_process_the_clock_decides() -> None:
    patience = Patience(WORK, 0.0)
    assert patience.judge(10.0, None) is Verdict.WAIT
    assert patience.judge(30.0, None) is Verdict.TOO_MUCH
