"""``python -m neuron.text_process --fd N``: a text process that nobody forked.

*N* is its end of a socketpair to the neuron service, with which it always ends.
"""

import argparse
import os
import signal
import socket

from protocol.runtime.die_with_parent import die_with_parent


def main() -> None:
    """Runs the process; does not return."""
    parser = argparse.ArgumentParser(prog="neuron.text_process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the service")
    arguments = parser.parse_args()
    # Ctrl-C is for the service, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(os.getppid())
    from neuron.text_process.serve import run_text  # late: a parent's death is noticed before it

    run_text(socket.socket(fileno=arguments.fd))


if __name__ == "__main__":
    main()
