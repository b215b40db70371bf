"""A child process that does not outlive its parent, not even one that was killed with -9."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent ends; Linux only, elsewhere a no-op.

    Call it in the child, as early as possible, with the pid of the process that started it: when
    that one is gone already, the child exits here. The signal is tied to the *thread* that forked,
    so start children from the main thread.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
