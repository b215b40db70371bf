"""Limits how long one request waits: for a turn, for its model to load, for a node that has it.
Pure."""

from collections.abc import Callable

from cortex.dispatch import router
from cortex.placement.options import PLACE_SECONDS
from protocol.errors import ErrorCode, FleetError

QUEUE_SECONDS = 60.0
"""Limit of the wait for a neuron, while some node is ready."""
LOAD_SECONDS = 900.0
"""Limit of the wait while its model loads."""
NO_NEURON_SECONDS = 15.0
"""Limit of the wait for a node, while none has the model or loads it."""


class WaitBudget:
    """The wait budget of one request: a separate account for each kind of decision, so that the
    time in which a model loads does not count against the queue."""

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
        """Charges the time since the last call to *decision*'s account; raises ``FleetError`` when
        that account is exhausted. A refusal that cannot change ends the wait at once, unless the
        request *is patient*: a stream that has begun waits for whatever may come."""
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
                    f"{self._model} was still not loaded after {LOAD_SECONDS:.0f} s. See the log "
                    "of the node that loads it, or try again later.",
                    retry_after_seconds=30,
                )
            case router.Load(why_not_yet) if spent > self._place_seconds:
                raise FleetError(
                    ErrorCode.MODEL_UNAVAILABLE,
                    f"No room was found for {self._model} within {self._place_seconds:.0f} s: it "
                    f"is {why_not_yet}, which is in use or could not be evicted. Try again, or "
                    "add memory.",
                    retry_after_seconds=10,
                )
            case router.Refuse(error, may_change) if spent > NO_NEURON_SECONDS or not (
                is_patient or may_change
            ):
                raise FleetError.of(error)
