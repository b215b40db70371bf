"""Which gateways are alive: a neuron does not compute for a client that nobody can reach."""

import time
from collections.abc import Callable

from protocol.bus import Bus

GONE_AFTER_SECONDS = 1.2
CONNECTED_FOR_SECONDS = 3.0
"""Silence counts only after this long with an uninterrupted connection of our own."""


class Gateways:
    """Heartbeats of all gateways."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._connected_since = clock()

    def heard(self, gateway: str) -> None:
        """A heartbeat or a job of this gateway arrived."""
        self._heard[gateway] = self._clock()

    def reconnected(self) -> None:
        """Our own connection was interrupted."""
        self._connected_since = self._clock()

    def is_gone(self, gateway: str) -> bool:
        """Whether it has been silent while we could have heard it."""
        now = self._clock()
        if not self._bus.is_connected:
            self._connected_since = now
        if now - self._connected_since < CONNECTED_FOR_SECONDS:
            return False
        return now - self._heard.get(gateway, 0.0) > GONE_AFTER_SECONDS

    def forget_old(self) -> None:
        """Drops gateways that left long ago."""
        limit = self._clock() - 60.0
        self._heard = {g: at for g, at in self._heard.items() if at > limit}
