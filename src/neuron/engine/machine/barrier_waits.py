"""How compute threads wait for each other: they spin while they have the cores to themselves.

OpenMP's threads meet at a barrier hundreds of times in a step. Spinning there is quick on an idle
host, where sleeping costs a fifth of a small model's speed. On a busy host it is ruinous: a thread
that waits for a descheduled one burns the time in which that one could run, and decoding becomes
ten times slower. libgomp reads its waiting policy once, at its start; but it all but stops spinning
as soon as there are more OpenMP threads than cores. So while this process's threads are seen to
wait for cores, a few more threads are kept, which do nothing.

Which threads compute what stays the same, and so does every result. Linux and libgomp only;
elsewhere nothing happens.
"""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch

LOOK_SECONDS = 0.25
CROWDED = 0.25
"""Threads waiting for a core, on average over the time in which the process computes, above which
nobody spins."""
ALONE = 0.15
"""The same, below which they spin again."""
CALM_SECONDS = 0.5
"""How long it must have been so, after what may have been a passing disturbance. Each time that
proves too short, it is twice as long, up to a limit."""
MOST_CALM_SECONDS = 4.0
_LEAST_BUSY = 0.05
"""Share of a look in which the process must have computed for the look to say anything."""
_TASKS = Path("/proc/self/task")


class Times(NamedTuple):
    """What the scheduler has counted for one thread, in seconds."""

    running: float
    waiting: float
    """Ready to run, without a core."""


def thread_times(tasks: Path = _TASKS) -> dict[str, Times]:
    """Reads the times of all threads of this process, by thread id; empty where there are none."""
    found = {}
    with contextlib.suppress(OSError):
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError, ValueError):
                running, waiting, *_ = (tasks / task / "schedstat").read_text().split()
                found[task] = Times(int(running) / 1e9, int(waiting) / 1e9)
    return found


def crowding(before: dict[str, Times], after: dict[str, Times], seconds: float) -> float | None:
    """How many threads waited for a core on average, over the time in which the busiest one ran or
    wanted to; None when the process hardly computed."""
    grown = [
        Times(now.running - then.running, now.waiting - then.waiting)
        for task, now in after.items()
        if (then := before.get(task)) is not None
    ]
    busiest = max((one.running + one.waiting for one in grown), default=0.0)
    if busiest < _LEAST_BUSY * seconds:
        return None
    return sum(one.waiting for one in grown) / busiest


class Policy:
    """Decides whether threads may spin; pure."""

    def __init__(self) -> None:
        self.spins = True
        self._needed = CALM_SECONDS
        self._calm = MOST_CALM_SECONDS
        """Seconds without crowding since that last changed anything."""

    def look(self, crowd: float | None, seconds: float) -> None:
        """Takes in the crowding of the last *seconds*."""
        if crowd is None:
            return
        if crowd <= (CROWDED if self.spins else ALONE):
            self._calm += seconds
            if not self.spins and self._calm >= self._needed:
                self.spins, self._calm = True, 0.0
            return
        if self.spins:
            was_long_calm = self._calm >= MOST_CALM_SECONDS
            self._needed = CALM_SECONDS if was_long_calm else 2 * self._needed
            self._needed = min(self._needed, MOST_CALM_SECONDS)
        self.spins, self._calm = False, 0.0


class BarrierWaits:
    """Keeps the waiting of this process's OpenMP threads as it should be, from a thread of its
    own."""

    def __init__(self) -> None:
        self._gomp = _loaded_gomp()
        self._idle_threads: threading.Event | None = None
        self._policy = Policy()

    def start(self) -> None:
        """Begins, for the rest of the process's life, where that is possible."""
        if self._gomp is not None and thread_times():
            threading.Thread(target=self._run, name="barrier-waits", daemon=True).start()

    def forget(self) -> None:
        """Starts afresh: what was seen so far was this process crowding itself, as loading does."""
        self._policy = Policy()

    def _run(self) -> None:
        before, at = thread_times(), time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            after, now = thread_times(), time.monotonic()
            policy = self._policy
            policy.look(crowding(before, after, now - at), now - at)
            before, at = after, now
            if policy.spins != (self._idle_threads is None):
                self._let_spin(policy.spins)

    def _let_spin(self, spins: bool) -> None:
        if self._idle_threads is not None:
            self._idle_threads.set()
            self._idle_threads = None
        if not spins:
            self._idle_threads = threading.Event()
            threading.Thread(
                target=self._hold, args=(self._idle_threads,), name="no-spinning", daemon=True
            ).start()

    def _hold(self, ended: threading.Event) -> None:
        """Keeps a team of threads, which belongs to the thread that made it, until *ended*."""
        assert self._gomp is not None
        cores = len(os.sched_getaffinity(0))
        team = max(2, cores - torch.get_num_threads() + 3)
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # does nothing with NULL
        self._gomp.GOMP_parallel(nothing, None, ctypes.c_uint(team), ctypes.c_uint(0))
        ended.wait()


def _loaded_gomp() -> ctypes.CDLL | None:
    """The libgomp that torch computes with; None where it uses another library."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.rpartition(" ")[2]
            if "libgomp" in os.path.basename(path):
                library = ctypes.CDLL(path)
                return library if hasattr(library, "GOMP_parallel") else None
    return None
