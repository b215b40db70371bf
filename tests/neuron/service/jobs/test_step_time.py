"""Step times are learnt, predicted for one more row, and told as a pull's priority."""

import pytest

from neuron.service.jobs.step_time import StepTime


def test_nothing_is_known_at_first() -> None:
    assert StepTime().predicted(1) == 0.0
    assert StepTime().priority(1) == 0, "who is not known yet is tried"


def test_each_step_counts_once() -> None:
    step_time = StepTime()
    step_time.saw(1, 1, 0.010)
    for _ in range(100):
        step_time.saw(1, 1, 5.0)
    assert step_time.predicted(1) == pytest.approx(0.010)


def test_it_follows_slowly() -> None:
    step_time = StepTime()
    for number in range(200):
        step_time.saw(number + 1, 4, 0.010 if number < 100 else 0.030)
    assert step_time.predicted(4) == pytest.approx(0.030, rel=0.01)


def test_more_rows_take_no_less() -> None:
    step_time = StepTime()
    step_time.saw(1, 1, 0.010)
    step_time.saw(2, 16, 0.050)
    assert step_time.predicted(2) == pytest.approx(0.010), "known from fewer rows"
    assert step_time.predicted(16) == step_time.predicted(100) == pytest.approx(0.050)
    step_time = StepTime()
    step_time.saw(1, 8, 0.020)
    assert step_time.predicted(1) == pytest.approx(0.020), "better than nothing"


def test_the_faster_goes_first() -> None:
    priorities = []
    for seconds in (0.001, 0.004, 0.012, 0.040, 0.1, 3.0):
        step_time = StepTime()
        step_time.saw(1, 1, seconds)
        priorities.append(step_time.priority(1))
    assert priorities == sorted(priorities)
    assert (priorities[0], priorities[-1]) == (0, 9)
    assert len(set(priorities)) == 6
