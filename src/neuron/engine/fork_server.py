"""The fork server: imports torch and the engine once, and forks a process when asked: an engine's,
or one for a model's texts.

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

from neuron.engine.serve import run_rank
from neuron.ipc.fork_requests import (
    MAX_DESCRIPTORS,
    MESSAGE_BYTES,
    NO_PROCESS,
    READY,
    ForkRequest,
    Kind,
)
from neuron.ipc.process_title import set_title
from neuron.text_process.serve import run_text
from protocol.runtime.die_with_parent import die_with_parent

_ENGINE = (sys.executable, "-P", "-m", "neuron.engine")
_TEXT = (sys.executable, "-P", "-m", "neuron.text_process")
"""What processes that are not forked are started with."""
_ADOPTED_SECONDS = 5.0
"""Time in which the service must have become the parent; it does as soon as this process's parent
has ended, which it does at once."""


def serve_forks(control: socket.socket, service: int) -> int:
    """Forks a process for each request on *control*, until the service is gone.

    *service* is the service's process id. Returns the exit status.
    """
    set_title("neuron-forks", ["neuron: fork server"])
    gc.collect()
    gc.freeze()  # no collection touches, and so copies, what all of them share
    control.setblocking(True)
    control.send(READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, MAX_DESCRIPTORS)
        if not data:
            return 0
        pid = _fork(control, service, ForkRequest.decode(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(pid or NO_PROCESS)


def _fork(
    control: socket.socket, service: int, request: ForkRequest, descriptors: list[int]
) -> bytes:
    """Returns the new process's id in decimal; empty if it ended before it could tell."""
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        control.close()
        os.close(reading)
        _become(service, request, descriptors, writing)
    os.close(writing)
    os.waitpid(between, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read(MESSAGE_BYTES)


def _become(service: int, request: ForkRequest, descriptors: list[int], writing: int) -> NoReturn:
    """Turns this process into what was asked for; never returns."""
    try:
        os.setsid()
        connection, stderr, *lines = descriptors
        os.dup2(stderr, sys.stderr.fileno())
        os.close(stderr)
        _wait_for_adoption(service)
        die_with_parent(service)
        rank = request.rank
        if request.kind is Kind.ENGINE:
            set_title("neuron-engine", [*_ENGINE, "--fd", str(connection), "--rank", str(rank)])
        else:
            set_title("neuron-text", [*_TEXT, "--fd", str(connection)])
        os.write(writing, str(os.getpid()).encode())
        os.close(writing)
        if request.kind is Kind.TEXT:
            run_text(socket.socket(fileno=connection))
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
