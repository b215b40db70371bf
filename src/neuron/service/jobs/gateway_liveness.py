"""Which gateways are alive, so that a neuron does not compute for unreachable clients."""

import time
from collections.abc import Callable

GONE_AFTER_SECONDS = 1.2
HEARING_FOR_SECONDS = 3.0
"""Silence only counts after this long without a gap in our own reception."""
ECHO_SECONDS = 0.9
"""Our own heartbeat comes back through the server at least this often, or we hear nothing."""
CUT_OFF_SECONDS = 15.0
"""After hearing nothing for this long we are isolated, and every gateway has moved on."""


class GatewayLiveness:
    """Tracks the heartbeats of all gateways."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._hearing_since = clock()
        self._echo_at = clock()

    def heard(self, gateway: str) -> None:
        """Records that a heartbeat or job of *gateway* arrived."""
        self._heard[gateway] = self._clock()

    def echo(self) -> None:
        """Records that our own heartbeat came back: the server and our connection work."""
        now = self._clock()
        if now - self._echo_at > ECHO_SECONDS:
            self._hearing_since = now
        self._echo_at = now

    def reconnected(self) -> None:
        """Records that our own connection was interrupted."""
        self._hearing_since = self._clock()

    def is_gone(self, gateway: str) -> bool:
        """Whether *gateway* has been silent while we could have heard it."""
        now = self._clock()
        deaf_seconds = now - self._echo_at
        if deaf_seconds > ECHO_SECONDS:
            return deaf_seconds > CUT_OFF_SECONDS
        if now - self._hearing_since < HEARING_FOR_SECONDS:
            return False
        return now - self._heard.get(gateway, 0.0) > GONE_AFTER_SECONDS

    def forget_old(self) -> None:
        """Drops gateways that have been silent for a minute."""
        limit = self._clock() - 60.0
        self._heard = {g: at for g, at in self._heard.items() if at > limit}
