"""How long requests wait, on a clock that the test turns."""

import pytest

from cortex.dispatch.router import Decision, Refuse, Run, Wait
from cortex.dispatch.wait_budget import LOAD_SECONDS, NO_NEURON_SECONDS, QUEUE_SECONDS, WaitBudget
from protocol.errors import ErrorCode, FleetError, WireError

GONE = Refuse(WireError(ErrorCode.MODEL_NOT_FOUND, "gone"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("decision", "bound", "code"),
    [
        (Run(), QUEUE_SECONDS, ErrorCode.TIMEOUT),
        (Wait(), LOAD_SECONDS, ErrorCode.TIMEOUT),
        (GONE, NO_NEURON_SECONDS, ErrorCode.MODEL_NOT_FOUND),
    ],
)
def test_each_kind_of_waiting_has_its_bound(
    decision: Decision, bound: float, code: ErrorCode
) -> None:
    clock = Clock()
    budget = WaitBudget("m", clock)
    clock.now = bound - 0.1
    budget.check(decision, is_patient=True)
    clock.now = bound + 0.1
    with pytest.raises(FleetError) as caught:
        budget.check(decision, is_patient=True)
    assert caught.value.error.code is code


def test_loading_is_not_counted_against_the_queue() -> None:
    clock = Clock()
    budget = WaitBudget("m", clock)
    for now, decision in ((40, Run()), (200, Wait()), (210, Run())):
        clock.now = now
        budget.check(decision, is_patient=False)
    clock.now = 225
    with pytest.raises(FleetError):
        budget.check(Run(), is_patient=False)


def test_a_model_that_failed_is_not_waited_for() -> None:
    with pytest.raises(FleetError, match="gone"):
        WaitBudget("m", Clock()).check(GONE, is_patient=False)


def test_what_may_change_is_waited_for() -> None:
    clock = Clock()
    budget = WaitBudget("m", clock)
    lost = Refuse(GONE.error, may_change=True)
    clock.now = NO_NEURON_SECONDS - 0.1
    budget.check(lost, is_patient=False)
    with pytest.raises(FleetError, match="gone"):
        budget.check(GONE, is_patient=False)
