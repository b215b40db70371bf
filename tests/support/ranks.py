"""Groups of ranks for tests: the test's own process is rank 0, the others wait for work."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import distributed

from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.engine.ranks.rendezvous import follow, lead
from neuron.ipc.rank_commands import ENVIRONMENT
from neuron.layers.group import ALONE, Group

P = ParamSpec("P")
T = TypeVar("T")
CPU = torch.device("cpu")


class Ranks:
    """A group that does what the test says."""

    def __init__(self, group: Group, others: list[Connection]) -> None:
        self.group = group
        self._others = others

    def run(self, work: Callable[Concatenate[Group, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """*work*, a function of a module, on every rank; returns what rank 0 returns. The others'
        failures are raised here."""
        return self.run_all(work, *args, **kwargs)[0]

    def run_all(
        self, work: Callable[Concatenate[Group, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """What each rank returns."""
        for other in self._others:
            other.send((work, args, kwargs))
        found = [work(self.group, *args, **kwargs)]
        for other in self._others:
            result, failure = other.recv()
            if failure is not None:
                raise failure
            found.append(result)
        return found


@contextmanager
def ranks(size: int) -> Iterator[Ranks]:
    """A group of *size*; of one, the test is alone."""
    if size == 1:
        yield Ranks(ALONE, [])
        return
    os.environ.update(ENVIRONMENT)
    spawn = multiprocessing.get_context("spawn")
    lines = [socket.socketpair() for _ in range(size - 1)]
    pipes = [spawn.Pipe() for _ in range(size - 1)]
    workers = [
        spawn.Process(target=_work, args=(rank, lines[rank - 1][1], pipes[rank - 1][1]))
        for rank in range(1, size)
    ]
    for worker in workers:
        worker.start()
    try:
        group = lead(RankBroadcast([ours for ours, _ in lines]), CPU)
        yield Ranks(group, [ours for ours, _ in pipes])
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
        for one, other in (*lines, *pipes):
            one.close()  # type: ignore[attr-defined]
            other.close()  # type: ignore[attr-defined]
        distributed.destroy_process_group()


def _work(rank: int, line: socket.socket, pipe: Connection) -> None:
    torch.set_num_threads(1)
    group = follow(FollowerEnd(line), rank, CPU)
    while True:
        work, args, kwargs = pipe.recv()
        result: Any = None
        failure: Exception | None = None
        try:
            result = work(group, *args, **kwargs)
        except Exception as error:
            failure = error
        pipe.send((result, failure))


def rank_processes(program: str) -> list[int]:
    """The processes of this one that are ranks of a group and run *program*, in their order."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if program.encode() in words and b"--rank" in words and int(parent) == os.getpid():
            found.append((int(words[words.index(b"--rank") + 1]), int(folder.name)))
    return [pid for _, pid in sorted(found)]
