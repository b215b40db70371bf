"""Which gateways are alive: a neuron does not compute for a client that nobody can reach."""

import time
from collections.abc import Callable

from protocol.timing import NORMAL, Timing


class GatewayLiveness:
    """Heartbeats of all gateways."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, timing: Timing = NORMAL
    ) -> None:
        self._clock = clock
        self._timing = timing
        self._heard: dict[str, float] = {}
        self._hearing_since = clock()
        self._echo_at = clock()

    def heard(self, gateway: str) -> None:
        """A heartbeat or a job of this gateway arrived."""
        self._heard[gateway] = self._clock()

    def echo(self) -> None:
        """Our own heartbeat came back: the server lives, and so does our connection."""
        now = self._clock()
        if now - self._echo_at > self._timing.echo_seconds:
            self._hearing_since = now
        self._echo_at = now

    def reconnected(self) -> None:
        """Our own connection was interrupted."""
        self._hearing_since = self._clock()

    def is_gone(self, gateway: str) -> bool:
        """Whether it has been silent while we could have heard it."""
        now = self._clock()
        deaf_seconds = now - self._echo_at
        if deaf_seconds > self._timing.echo_seconds:
            return deaf_seconds > self._timing.cut_off_seconds
        if now - self._hearing_since < self._timing.hearing_seconds:
            return False
        return now - self._heard.get(gateway, 0.0) > self._timing.gateway_gone_seconds

    def forget_old(self) -> None:
        """Drops gateways that left long ago."""
        limit = self._clock() - 60.0
        self._heard = {g: at for g, at in self._heard.items() if at > limit}
