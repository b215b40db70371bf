"""Reads files that somebody else made: never a device, a pipe, or more than a bound."""

import errno
import os
import stat
from pathlib import Path

from protocol.runtime.sizes import size_text


class UnsuitableFile(OSError):
    """Raised for what is not an ordinary file, or has more bytes than are read."""


def read_bounded(path: Path, limit: int) -> bytes:
    """Returns the content of *path*, at most *limit* bytes. Raises :class:`UnsuitableFile`, or
    another OSError when it cannot be read."""
    with os.fdopen(_open(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnsuitableFile(
                f"{path.name} has {size_text(size)}, and at most {size_text(limit)} of it are read"
            )
        return file.read(limit)


def _open(path: Path) -> int:
    """Opens an ordinary file, and nothing else."""
    no_file = UnsuitableFile(f"{path.name} is not an ordinary file")
    try:
        # without waiting, as a pipe would wait for its writer
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise no_file from error
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise no_file
    return opened
