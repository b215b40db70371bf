"""The fork server: imports torch and the engine once, and forks an engine process when asked.

Starting Python and importing torch takes seconds; forking takes milliseconds, and the engines share
the memory of what was imported. For each request on its socket, it makes a process that is a child
of the *service* (by forking twice: the kernel gives the orphan to the service, which has declared
itself the reaper of its descendants). So engines outlive the fork server, end with the service, and
their exit status is the service's to read.

It computes nothing and has one thread: threads, devices and torch's pools do not survive a fork.
"""

import gc
import os
import socket
import sys
import time
from typing import NoReturn

from neuron.engine.machine.process_title import set_title
from neuron.engine.serve import run_rank
from neuron.ipc.fork_requests import MAX_DESCRIPTORS, MESSAGE_BYTES, NO_PROCESS, READY
from protocol.runtime.die_with_parent import die_with_parent

_COMMAND = (sys.executable, "-P", "-m", "neuron.engine")
"""What an engine that is not forked was started with."""
_ADOPTED_SECONDS = 5.0
"""Time in which the service must have become the parent; it does as soon as this process's parent
has ended, which it does at once."""


def serve_forks(control: socket.socket, service: int) -> int:
    """Forks an engine process for each request on *control*, until the service is gone.

    *service* is the service's process id. Returns the exit status.
    """
    set_title("neuron-forks", ["neuron: fork server"])
    gc.collect()
    gc.freeze()  # no collection touches, and so copies, what all engines share
    control.setblocking(True)
    control.send(READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, MAX_DESCRIPTORS)
        if not data:
            return 0
        pid = _fork_engine(control, service, int(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(pid or NO_PROCESS)


def _fork_engine(control: socket.socket, service: int, rank: int, descriptors: list[int]) -> bytes:
    """Returns the new process's id in decimal; empty if it ended before it could tell."""
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        control.close()
        os.close(reading)
        _become_engine(service, rank, descriptors, writing)
    os.close(writing)
    os.waitpid(between, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read(MESSAGE_BYTES)


def _become_engine(service: int, rank: int, descriptors: list[int], writing: int) -> NoReturn:
    """Turns this process into an engine; never returns."""
    try:
        os.setsid()
        connection, stderr, *lines = descriptors
        os.dup2(stderr, sys.stderr.fileno())
        os.close(stderr)
        _wait_for_adoption(service)
        die_with_parent(service)
        set_title("neuron-engine", [*_COMMAND, "--fd", str(connection), "--rank", str(rank)])
        os.write(writing, str(os.getpid()).encode())
        os.close(writing)
        sockets = [socket.socket(fileno=line) for line in lines]
        run_rank(socket.socket(fileno=connection), rank, sockets)
    finally:
        os._exit(1)


def _wait_for_adoption(service: int) -> None:
    ends = time.monotonic() + _ADOPTED_SECONDS
    while os.getppid() != service:
        if time.monotonic() > ends:
            os._exit(1)  # the service is gone
        time.sleep(0.0005)
