"""``python -m neuron.engine --fd N``: an engine process, started by the neuron service.

*N* is its end of the channel's socketpair. A model that is split over several devices has one such
process per device, its ranks. The process always ends together with its parent.
"""

import argparse
import os
import signal
import socket
import sys
import traceback

from neuron.engine.machine import heap
from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.ipc.channel import ChannelClosed, EngineEnd
from neuron.ipc.defaults import KERNELS_KEPT
from neuron.ipc.messages import Fatal
from neuron.ipc.rank_commands import ENVIRONMENT
from protocol.runtime.die_with_parent import die_with_parent


def main() -> int:
    """Runs the engine; returns the exit status (see ``serve.py``)."""
    parser = argparse.ArgumentParser(prog="neuron.engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the channel's file descriptor")
    parser.add_argument("--rank", type=int, default=0, help="its rank in the group")
    parser.add_argument(
        "--lines",
        type=int,
        nargs="*",
        default=[],
        help="sockets: rank 0's to the others, or one to it",
    )
    arguments = parser.parse_args()
    # Ctrl-C is for the service, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(os.getppid())
    for variable in heap.KERNELS_VARIABLES:
        os.environ.setdefault(variable, str(KERNELS_KEPT))
    os.environ.update(ENVIRONMENT)
    channel = EngineEnd(socket.socket(fileno=arguments.fd))
    lines = [socket.socket(fileno=line) for line in arguments.lines]
    try:
        # A late import, because it loads torch: before it, a parent's death is noticed in
        # milliseconds.
        from neuron.engine.serve import serve, serve_rank

        if arguments.rank:
            return serve_rank(channel, FollowerEnd(lines[0]), arguments.rank)
        return serve(channel, RankBroadcast(lines))
    except ChannelClosed:
        return 0
    except Exception as error:
        traceback.print_exc()
        channel.send(Fatal(f"{type(error).__name__}: {error}"))
        return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the kernel frees the memory faster than torch would
