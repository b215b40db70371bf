"""Notices when something holds the event loop, and says what.

Everything in a gateway and in a neuron's service runs on one loop: while it is held, no token is
passed on, and after a second the process counts as dead. A timer measures how late the loop is. A
thread looks, while the timer is overdue, at what is running: afterwards nobody could tell.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

log = logging.getLogger("loop")

HELD_SECONDS = 0.05
"""A delay of the loop from which on it is told."""
TICK_SECONDS = 0.05
LOG_SECONDS = 1.0
"""The shortest time between two lines."""
UNSEEN_SECONDS = 0.25
"""A delay for which nothing in this process can be named is logged only from this length on: on a
busy host, a process waits for its turn."""
_NO_TURN = ", by a library's call that lets no other thread run, or by other processes"


class LoopWatch:
    """Watches the loop on which :meth:`run` runs."""

    def __init__(self, on_held: Callable[[float], None] = lambda _: None) -> None:
        """*on_held* is told for how many seconds the loop was held, each time."""
        self._on_held = on_held
        self._due = float("inf")
        self._found = ""
        self._ended = threading.Event()
        self._logged = float("-inf")
        self.longest_seconds = 0.0
        """The longest time for which the loop was held."""

    async def run(self) -> NoReturn:
        """Watches until cancelled."""
        loop = asyncio.get_running_loop()
        looker = threading.Thread(
            target=self._look, args=(loop, threading.get_ident()), name="loop-watch", daemon=True
        )
        looker.start()
        try:
            while True:
                self._due = time.monotonic() + TICK_SECONDS
                await asyncio.sleep(TICK_SECONDS)
                late = time.monotonic() - self._due
                if late > HELD_SECONDS:
                    self._tell(late)
        finally:
            self._due = float("inf")
            self._ended.set()

    def _tell(self, seconds: float) -> None:
        found, self._found = self._found, ""
        self.longest_seconds = max(self.longest_seconds, seconds)
        self._on_held(seconds)
        now = time.monotonic()
        is_worth_a_line = bool(found) or seconds >= UNSEEN_SECONDS
        if is_worth_a_line and now - self._logged > LOG_SECONDS:
            self._logged = now
            log.warning("the event loop was held for %.2f s%s", seconds, found or _NO_TURN)

    def _look(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        now = time.monotonic()
        unseen = 0.0  # when the timer was due that something unseen has held
        while not self._ended.wait(TICK_SECONDS):
            before, now = now, time.monotonic()
            if now - before > TICK_SECONDS + HELD_SECONDS:
                unseen = self._due  # this thread had no turn either: nobody else is to blame
            elif now - self._due > HELD_SECONDS and self._due != unseen:
                task = asyncio.current_task(loop)
                frame = sys._current_frames().get(thread)
                if task is None and frame is not None and frame.f_code.co_name == "select":
                    continue  # it waits, and may run
                named = f" by the task {task.get_name()!r}" if task is not None else ""
                self._found = f"{named} in {_place(frame)}"
                del frame, task  # they would hold what the task has in its hands


def _place(frame: FrameType | None) -> str:
    """Names the functions that a thread is in, the innermost last."""
    names: list[str] = []
    while frame is not None and len(names) < 4:
        code = frame.f_code
        names.insert(0, f"{code.co_name} ({_short(code.co_filename)}:{frame.f_lineno})")
        frame = frame.f_back
    return " → ".join(names) or "no Python code"


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])
