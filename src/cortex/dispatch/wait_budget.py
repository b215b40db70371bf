"""How long one request waits: for a turn, for a loading model, for a fleet without it. Pure."""

from collections.abc import Callable

from cortex.dispatch import router
from cortex.placement.options import PLACE_SECONDS
from protocol.errors import ErrorCode, FleetError

QUEUE_SECONDS = 60.0
"""For a neuron, while some node is ready."""
LOAD_SECONDS = 900.0
"""For its model to load."""
NO_NEURON_SECONDS = 15.0
"""For a node, while none has or loads the model."""


class WaitBudget:
    """Four accounts, one for each kind of decision; the time in which a model loads is not
    counted against the queue."""

    def __init__(
        self,
        model: str,
        clock: Callable[[], float],
        place_seconds: float = PLACE_SECONDS,
    ) -> None:
        self._model = model
        self._clock = clock
        self._place_seconds = place_seconds
        kinds = (router.Run, router.Wait, router.Load, router.Refuse)
        self._spent = dict.fromkeys(kinds, 0.0)
        self._last = clock()

    def check(self, decision: router.Decision, *, is_patient: bool) -> None:
        """Adds the time since the last call to *decision*'s account; raises ``FleetError`` when
        that is exhausted. A refusal that is not going to change is no reason to wait, unless one
        *is patient*: a stream that has begun waits for whatever may come."""
        now = self._clock()
        spent = self._spent[type(decision)] = self._spent[type(decision)] + now - self._last
        self._last = now
        match decision:
            case router.Run() if spent > QUEUE_SECONDS:
                raise FleetError(
                    ErrorCode.TIMEOUT,
                    f"No neuron took the request within {QUEUE_SECONDS:.0f} s: all slots of "
                    f"{self._model} are busy. Try again, or add a node.",
                    retry_after_seconds=5,
                )
            case router.Wait() if spent > LOAD_SECONDS:
                raise FleetError(
                    ErrorCode.TIMEOUT,
                    f"{self._model} was still not loaded after {LOAD_SECONDS:.0f} s.",
                    retry_after_seconds=30,
                )
            case router.Load(why_not_yet) if spent > self._place_seconds:
                raise FleetError(
                    ErrorCode.MODEL_UNAVAILABLE,
                    f"There was no place for {self._model} within {self._place_seconds:.0f} s: it "
                    f"is {why_not_yet}, which is in use or could not go. Try again, or add memory.",
                    retry_after_seconds=10,
                )
            case router.Refuse(error, may_change) if spent > NO_NEURON_SECONDS or not (
                is_patient or may_change
            ):
                raise FleetError.of(error)
