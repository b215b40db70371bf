"""What ``ps`` and ``top`` show of this process; does nothing where that cannot be changed.

A forked process has the command line of the one that it was forked from. The kernel reads it from
the process's own memory, at addresses that proc(5) tells.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

_PR_SET_NAME = 15
_NAME_BYTES = 15
_ARG_START, _ARG_END = 47, 48
"""Fields of /proc/PID/stat, counted from 0 (proc(5) counts from 1)."""


def set_title(name: str, command: Sequence[str]) -> None:
    """Shows *name* as the program's name (15 characters), and as much of *command* as there was
    room for in the old command line."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES], 0, 0, 0)
        stat = Path("/proc/self/stat").read_text()
        # the second field, in parentheses, may have spaces
        fields = ["", "", *stat.rpartition(")")[2].split()]
        start, size = int(fields[_ARG_START]), int(fields[_ARG_END]) - int(fields[_ARG_START])
    except (AttributeError, OSError, ValueError, IndexError):
        return
    words = b"".join(word.encode() + b"\0" for word in command)
    if start and size > 0:
        ctypes.memmove(start, words[: size - 1].ljust(size, b"\0"), size)
