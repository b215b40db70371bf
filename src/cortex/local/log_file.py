"""A child's log: bounded while the child runs, private, and never in the way of anything.

A full disk costs lines, not processes.
"""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 16 << 20
"""Size beyond which a log is moved aside, over the one that was moved before."""


class LogFile:
    """Appends lines to a file, of which there is one older part."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, line: bytes) -> None:
        """Appends *line*; drops it when it cannot be written."""
        with contextlib.suppress(OSError):
            if self._file is None or self._size > self._max_bytes:
                self._file = self._opened()
            self._file.write(line)
            self._size += len(line)

    def close(self) -> None:
        """Closes the file; another line would open it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size > self._max_bytes:
                os.replace(self._path, older_part(self._path))
        file = open_private(self._path)
        self._size = os.fstat(file.fileno()).st_size
        return file


def older_part(path: Path) -> Path:
    """Where the older part of a log is."""
    return path.with_name(f"{path.name}.1")


def open_private(path: Path) -> BinaryIO:
    """Opens a file for appending without a buffer; only its owner may read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    return open(descriptor, "ab", buffering=0)
