"""``python -m neuron.engine --fd N``: an engine process, or the fork server that makes them.

*N* is its end of a socketpair to the neuron service. A model that is split over several devices has
one engine process per device, its ranks. The process always ends together with the service.
"""

import argparse
import os
import signal
import socket
import sys
import traceback

from neuron.engine.machine import heap
from neuron.ipc.channel import EngineEnd
from neuron.ipc.defaults import KERNELS_KEPT
from neuron.ipc.messages import Fatal
from neuron.ipc.rank_commands import ENVIRONMENT
from protocol.runtime.die_with_parent import die_with_parent


def main() -> int:
    """Runs the process; returns the exit status if it does not end itself (see ``serve.py``)."""
    parser = argparse.ArgumentParser(prog="neuron.engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the service")
    parser.add_argument("--rank", type=int, default=0, help="its rank in the group")
    parser.add_argument(
        "--lines",
        type=int,
        nargs="*",
        default=[],
        help="sockets: rank 0's to the others, or one to it",
    )
    parser.add_argument(
        "--fork-server", action="store_true", help="fork engine processes on request"
    )
    arguments = parser.parse_args()
    # Ctrl-C is for the service, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = os.getppid()
    die_with_parent(service)
    for variable in heap.KERNELS_VARIABLES:
        os.environ.setdefault(variable, str(KERNELS_KEPT))
    os.environ.update(ENVIRONMENT)
    connection = socket.socket(fileno=arguments.fd)
    # Late imports, because they load torch: before it, a parent's death is noticed in milliseconds.
    if arguments.fork_server:
        from neuron.engine.fork_server import serve_forks

        return serve_forks(connection, service)
    lines = [socket.socket(fileno=line) for line in arguments.lines]
    try:
        from neuron.engine.serve import run_rank
    except Exception as error:
        traceback.print_exc()
        EngineEnd(connection).send(Fatal(f"{type(error).__name__}: {error}"))
        return 1
    run_rank(connection, arguments.rank, lines)


if __name__ == "__main__":
    sys.exit(main())
