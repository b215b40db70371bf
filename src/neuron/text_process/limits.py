"""What a text process may take: memory by the kernel's limit, processor time by its own timer.

The timer stops what is written in Python, above all templates, with a readable reason. It cannot
interrupt the C or Rust code of a library: then the service ends the process. Linux only; elsewhere
nothing is limited.
"""

import contextlib
import resource
import signal
from pathlib import Path
from types import FrameType, TracebackType

from neuron.text.sandbox import TooExpensive

REQUEST_BYTES = 1 << 30
"""Memory that a request may take beside what the process has after its load."""
LOAD_BYTES = 512 << 20
LOAD_FILE_FACTOR = 40
"""Memory that reading a tokenizer may take: so much, and so many times its file's size. Parsed
files take ten times their size."""
_AGAIN_SECONDS = 0.1
"""The timer goes off again after this time, as libraries may catch the exception."""


def limit_memory(more_bytes: int) -> None:
    """Lets this process take *more_bytes* beside what it has; then allocations fail."""
    taken = _data_bytes()
    if not taken:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = taken + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def offer_to_the_kernel() -> None:
    """Makes this process the first to go when the host is out of memory: it is quickly replaced."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _data_bytes() -> int:
    """What the kernel counts towards the limit; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


class CpuTimer:
    """Raises :class:`TooExpensive` in the main thread when work takes too long; a context
    manager, used again and again."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._is_armed = False
        self.went_off = False
        """Whether the work last enclosed took too long."""
        signal.signal(signal.SIGPROF, self._went_off)

    def limit(self, seconds: float) -> "CpuTimer":
        """Sets what the next work may take."""
        self._seconds = seconds
        return self

    def __enter__(self) -> None:
        self._is_armed, self.went_off = True, False
        signal.setitimer(signal.ITIMER_PROF, self._seconds, _AGAIN_SECONDS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._is_armed = False
        finally:  # the timer may go off on the way here
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _went_off(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self.went_off = True
            raise TooExpensive(f"it took more than {self._seconds:g} s of processor time")
