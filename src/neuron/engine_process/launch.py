"""Makes a process: a new Python that imports everything itself.

Owns the command lines, of engines and of text processes. The quicker way is ``fork_server.py``;
both have the shape of :class:`Launch` or :class:`LaunchText`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from neuron.engine_process.child import Child

PROGRAM = (sys.executable, "-P", "-m", "neuron.engine")
TEXT_PROGRAM = (sys.executable, "-P", "-m", "neuron.text_process")


class CannotLaunch(OSError):
    """Raised when a process could not be made in the usual way; another try uses another way, and
    must use other descriptors."""


class Launch(Protocol):
    """Makes the process of one rank. Raises :class:`CannotLaunch`, or another OSError."""

    async def __call__(self, rank: int, channel: int, lines: Sequence[int]) -> Child:
        """*channel* and *lines* are descriptors, which it does not keep."""
        ...


class LaunchText(Protocol):
    """Makes a text process. Raises :class:`CannotLaunch`, or another OSError."""

    async def __call__(self, channel: int) -> Child:
        """*channel* is a descriptor, which it does not keep."""
        ...


async def start_text_python(channel: int, *, environment: Mapping[str, str] | None = None) -> Child:
    """Starts a Python process for a model's texts. *environment* as for :func:`start_python`."""
    command = [*TEXT_PROGRAM, "--fd", str(channel)]
    return await Child.spawn(command, fds=(channel,), environment=environment)


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
