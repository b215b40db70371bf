"""Makes an engine's process: a new Python that imports everything itself.

Owns the command line. The quicker way is ``fork_server.py``; both have the shape of
:class:`Launch`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from neuron.engine_process.child import Child

PROGRAM = (sys.executable, "-P", "-m", "neuron.engine")


class CannotLaunch(OSError):
    """Raised when a process could not be made in the usual way; another try uses another way, and
    must use other descriptors."""


class Launch(Protocol):
    """Makes the process of one rank. Raises :class:`CannotLaunch`, or another OSError."""

    async def __call__(self, rank: int, channel: int, lines: Sequence[int]) -> Child:
        """*channel* and *lines* are descriptors, which it does not keep."""
        ...


async def start_python(
    rank: int,
    channel: int,
    lines: Sequence[int],
    *,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Starts a Python process. *environment* is its complete environment; None inherits this
    one's."""
    command = [*PROGRAM, "--fd", str(channel)]
    if lines:
        command += ["--rank", str(rank), "--lines", *map(str, lines)]
    return await Child.spawn(command, fds=(channel, *lines), environment=environment)
