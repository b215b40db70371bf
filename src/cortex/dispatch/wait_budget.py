"""Limits how long one request waits: for a turn, for its model to load, for a node that has it.
Pure."""

from collections.abc import Callable

from cortex.dispatch import refusals, router
from cortex.placement.options import PLACE_SECONDS
from protocol.errors import FleetError

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

    def left(self, decision: router.Decision) -> float:
        """Seconds that a wait for *decision* may still take."""
        limits = {
            router.Run: QUEUE_SECONDS,
            router.Wait: LOAD_SECONDS,
            router.Load: self._place_seconds,
            router.Refuse: NO_NEURON_SECONDS,
        }
        kind = type(decision)
        return max(0.0, limits[kind] - self._spent[kind])

    def check(
        self, decision: router.Decision, *, is_patient: bool, is_own_fault: bool = False
    ) -> None:
        """Charges the time since the last call to *decision*'s account; raises ``FleetError`` when
        that account is exhausted. A refusal that cannot change ends the wait at once, unless the
        request *is patient*: a stream that has begun waits for whatever may come. A wait for a turn
        that *is the client's own fault* is not charged."""
        now = self._clock()
        if is_own_fault and isinstance(decision, router.Run):
            self._last = now
            return
        spent = self._spent[type(decision)] = self._spent[type(decision)] + now - self._last
        self._last = now
        match decision:
            case router.Run() if spent > QUEUE_SECONDS:
                raise FleetError.of(refusals.slots_stayed_busy(self._model, QUEUE_SECONDS))
            case router.Wait() if spent > LOAD_SECONDS:
                raise FleetError.of(refusals.load_took_too_long(self._model, LOAD_SECONDS))
            case router.Load(why_not_yet) if spent > self._place_seconds:
                raise FleetError.of(
                    refusals.no_room_was_made(self._model, self._place_seconds, why_not_yet)
                )
            case router.Refuse(error, may_change) if spent > NO_NEURON_SECONDS or not (
                is_patient or may_change
            ):
                raise FleetError.of(error)
