"""``python -m neuron.engine --fd N``: an engine process, started by the neuron service.

*N* is its end of the channel's socketpair. The process ends with its parent, whatever happens.
"""

import argparse
import os
import signal
import socket
import sys
import traceback

from neuron.engine import heap
from neuron.engine.channel import ChannelClosed, EngineEnd
from neuron.engine.messages import Fatal
from protocol.parent import die_with_parent


def main() -> int:
    """Runs the engine; returns the exit status (see ``serve.py``)."""
    parser = argparse.ArgumentParser(prog="neuron.engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the channel's file descriptor")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which ends us
    die_with_parent(os.getppid())
    for variable in heap.KERNELS_VARIABLES:
        os.environ.setdefault(variable, str(heap.KERNELS_KEPT))
    channel = EngineEnd(socket.socket(fileno=arguments.fd))
    try:
        # Late, because it imports torch: until here a dying parent is noticed within milliseconds.
        from neuron.engine.serve import serve

        return serve(channel)
    except ChannelClosed:
        return 0
    except Exception as error:
        traceback.print_exc()
        channel.send(Fatal(f"{type(error).__name__}: {error}"))
        return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the kernel takes the memory back faster than torch gives it up
