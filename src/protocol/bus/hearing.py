"""Whether a process hears the bus: silence of others means something only while it does.

Every gateway and every node receives its own heartbeat back through NATS. While that echo comes,
the server works and so does the connection to it, and whoever is silent then really is. A frozen
server, a cable that was pulled and a firewall that drops packets close no socket, so that without
the echo they would look like the death of everybody else.
"""

import time
from collections.abc import Callable

from protocol.timing import NORMAL, Timing


class Hearing:
    """What one process can say about its own hearing. Must be told of every :meth:`echo`."""

    def __init__(
        self, timing: Timing = NORMAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timing = timing
        self._clock = clock
        self._echo_at = clock()
        self.since = clock()
        """The time of *clock* since which nothing can have been missed."""

    @property
    def deaf_seconds(self) -> float:
        """Seconds since the last echo, of which there are several a second."""
        return self._clock() - self._echo_at

    @property
    def is_deaf(self) -> bool:
        """Whether the echo is overdue."""
        return self.deaf_seconds > self._timing.echo_seconds

    @property
    def is_cut_off(self) -> bool:
        """Whether it has been overdue for so long that others have taken over."""
        return self.deaf_seconds > self._timing.cut_off_seconds

    def echo(self) -> float:
        """Records that our own heartbeat came back. Returns for how many seconds nothing was
        heard before, or 0 if the echo was not overdue."""
        silence = self.deaf_seconds if self.is_deaf else 0.0
        if silence:
            self.missed()
        self._echo_at = self._clock()
        return silence

    def missed(self) -> None:
        """Records that something may have been missed until now, as after a reconnection."""
        self.since = self._clock()

    def reconnected(self) -> None:
        """Records that the server has just been heard, for the first time after an interruption."""
        self._echo_at = self.since = self._clock()

    def stalled(self) -> None:
        """Records that this process did not listen for a while, so that an echo that is overdue may
        have come and not been read."""
        self._echo_at = max(self._echo_at, self._clock() - self._timing.echo_seconds)
        self.missed()
