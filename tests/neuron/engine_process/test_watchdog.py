"""When silence counts as stuck."""

from neuron.engine_process.watchdog import Deadlines, StepWatch

DEADLINES = Deadlines(first_step_seconds=120, step_seconds=30, factor=10)


def test_the_first_step_may_take_long() -> None:
    watch = StepWatch(DEADLINES)
    assert not any(watch.tick(1, has_work=True) for _ in range(120))
    assert watch.tick(1, has_work=True)


def test_later_steps_have_the_shorter_deadline() -> None:
    watch = StepWatch(DEADLINES)
    watch.step(0.1)
    assert watch.deadline == 30
    assert not watch.tick(30, has_work=True)
    assert watch.tick(0.1, has_work=True)


def test_slow_steps_raise_the_deadline_for_a_while() -> None:
    watch = StepWatch(DEADLINES)
    watch.step(7)
    assert watch.deadline == 70
    for _ in range(64):
        watch.step(0.1)
    assert watch.deadline == 30


def test_only_silence_with_work_counts() -> None:
    watch = StepWatch(DEADLINES)
    watch.step(0.1)
    watch.tick(20, has_work=True)
    watch.tick(100, has_work=False)
    assert not watch.tick(20, has_work=True)
    watch.step(0.1)
    assert not watch.tick(20, has_work=True)


def test_a_process_that_a_signal_has_stopped_has_no_deadline() -> None:
    watch = StepWatch(DEADLINES)
    watch.step(60.0)
    assert not watch.tick(1.5, has_work=True, is_stopped=True)
    assert not watch.tick(0.1, has_work=True), "it goes on"
    assert not watch.tick(1.5, has_work=True, is_stopped=True)
    assert "signal had stopped it" in watch.tick(1.0, has_work=True, is_stopped=True)
    assert not StepWatch(DEADLINES).tick(100.0, has_work=False, is_stopped=True)
