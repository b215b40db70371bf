"""Starts child processes that do not outlive their parent, even one that was killed with -9.

This is also a tiny program, run by path and without ``site`` so that it costs milliseconds:
``python -I -S parent.py PARENT_PID COMMAND …`` asks the kernel for the signal and becomes COMMAND.
(A ``preexec_fn`` would run Python between fork and exec, which can deadlock.)
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent ends; a no-op outside Linux.

    Call it in the child, as early as possible, with the pid of the process that started it: if that
    process is already gone, the child exits here. The signal is tied to the *thread* that forked,
    so start children from the main thread.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def bound_to_this_process(*command: str) -> list[str]:
    """Returns the command line that runs *command* as a child that dies with the calling
    process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
