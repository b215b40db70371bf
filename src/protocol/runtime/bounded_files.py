"""Reads files that somebody else made: never a device, a pipe, or more than a bound."""

import os
import stat
from pathlib import Path

from protocol.runtime.sizes import size_text


class UnsuitableFile(OSError):
    """Raised for what is not an ordinary file, or has more bytes than are read."""


def read_bounded(path: Path, limit: int) -> bytes:
    """Returns the content of *path*, at most *limit* bytes. Raises :class:`UnsuitableFile`, or
    another OSError when it cannot be read."""
    # without waiting, as a pipe would wait for its writer
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UnsuitableFile(f"{path.name} is not an ordinary file")
        if found.st_size > limit:
            raise UnsuitableFile(
                f"{path.name} has {size_text(found.st_size)}, and at most {size_text(limit)} of "
                "it are read"
            )
        return file.read(limit)
