"""Which gateways are alive, so that a neuron does not compute for unreachable clients."""

import time
from collections.abc import Callable

from protocol.bus import Hearing
from protocol.timing import NORMAL, Timing


class GatewayLiveness:
    """Tracks the heartbeats of all gateways."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, timing: Timing = NORMAL
    ) -> None:
        self._clock = clock
        self._timing = timing
        self._heard: dict[str, float] = {}
        self._hearing = Hearing(timing, clock)

    def heard(self, gateway: str) -> None:
        """Records that a heartbeat or job of *gateway* arrived."""
        self._heard[gateway] = self._clock()

    def echo(self) -> None:
        """Records that our own heartbeat came back."""
        self._hearing.echo()

    def reconnected(self) -> None:
        """Records that our own connection was interrupted."""
        self._hearing.missed()

    def is_gone(self, gateway: str) -> bool:
        """Whether *gateway* has been silent while we could have heard it."""
        if self._hearing.is_deaf:
            return self._hearing.is_cut_off
        now = self._clock()
        if now - self._hearing.since < self._timing.hearing_seconds:
            return False
        return now - self._heard.get(gateway, 0.0) > self._timing.gateway_gone_seconds

    def forget_old(self) -> None:
        """Drops gateways that have been silent for a minute."""
        limit = self._clock() - 60.0
        self._heard = {g: at for g, at in self._heard.items() if at > limit}
