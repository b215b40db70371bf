"""SIGTERM and Ctrl-C: the first one stops a program in order, the second ends it at once."""

import asyncio
import logging
import os
import signal

log = logging.getLogger("stop")


def stop_on_signals() -> asyncio.Event:
    """Returns an event that the first signal sets in the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _stop_or_force, stop)
    return stop


def _stop_or_force(stop: asyncio.Event) -> None:
    if stop.is_set():
        log.warning("forced")
        os._exit(130)  # an exception here would have to pass through everything that hangs
    stop.set()
