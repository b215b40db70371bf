"""The process of one contestant: loads it, then runs a load for each line on stdin.

``python -m bench.engine.worker``. The first line is a :class:`Job`; answers are lines of JSON on
what was stdout at the start; whatever libraries print goes to stderr, which is a log file.
"""

import ctypes
import os
import signal
import sys
import time

import msgspec

from bench.engine import figures, loads
from bench.engine.loads import Kind, Load
from bench.engine.peer import Contestant, Maker, Peer, Settings

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG, in Linux' sys/prctl.h."""


class Job(msgspec.Struct, frozen=True):
    """What to load."""

    contestant: Contestant
    settings: Settings
    vocab: int


class Order(msgspec.Struct, frozen=True):
    """A load to run; *seed* makes its prompts."""

    load: Load
    seed: int


class Loaded(msgspec.Struct, frozen=True):
    """The answer to a Job."""

    about: str
    kinds: list[Kind]
    seconds: float


class Ran(msgspec.Struct, frozen=True):
    """The answer to an Order; *error* instead of figures when it failed."""

    figures: dict[str, float] = {}
    error: str = ""


def load_peer(contestant: Contestant, settings: Settings) -> Peer:
    """Imports and loads *contestant*."""
    if contestant.maker is Maker.OURS:
        from bench.engine.ours import Ours

        return Ours(contestant, settings)
    if contestant.maker is Maker.GENERATE:
        from bench.engine.transformers_peer import Generate

        return Generate(contestant, settings)
    if contestant.maker is Maker.CONTINUOUS:
        from bench.engine.continuous_peer import Continuous

        return Continuous(contestant, settings)
    from bench.engine.llamacpp_peer import Llama

    return Llama(contestant, settings)


def run(peer: Peer, order: Order, vocab: int) -> dict[str, float]:
    """One sample."""
    load = order.load
    if load.kind is Kind.DECODE:
        prompts = loads.prompts(load, order.seed, vocab)
        return figures.of_steps(load, peer.decode(prompts, load.steps, sampled=load.sampled))
    return figures.of_traces(load, peer.serve(loads.requests(load, order.seed, vocab)))


def main() -> None:
    """Answers orders until stdin ends."""
    # A process that is stopped when the benchmark is killed would keep its memory for ever.
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lines = sys.stdin.buffer
    job = msgspec.json.decode(lines.readline(), type=Job)
    began = time.monotonic()
    peer = load_peer(job.contestant, job.settings)
    loaded = Loaded(peer.about, sorted(peer.kinds), time.monotonic() - began)
    answers.write(msgspec.json.encode(loaded) + b"\n")
    for line in lines:
        order = msgspec.json.decode(line, type=Order)
        try:
            answer = Ran(run(peer, order, job.vocab))
        except Exception as error:  # the others' samples must go on, and the table shows it
            answer = Ran(error=f"{type(error).__name__}: {error}")
        answers.write(msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main()
