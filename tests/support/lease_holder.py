"""A process that contends for the placer's lease, and notes in a file when it would act.

``python -m tests.support.lease_holder --nats URL --name gw-1 --log FILE``. Each line of the file is
a monotonic time, the name, the process id and the epoch: what it would have signed an order with.
:class:`Acts` reads the file, also while it grows.
"""

import argparse
import asyncio
import itertools
import os
import time
from pathlib import Path
from typing import NamedTuple

from cortex.identity import GatewayIdentity
from cortex.placement.lease import Lease
from protocol import keys
from protocol.bus import Bus, KvBucket
from protocol.leader import Epoch
from protocol.runtime import loop
from tests.support.waiting import until

EVERY_SECONDS = 0.005


class Act(NamedTuple):
    """A moment at which a process would have acted."""

    at: float
    name: str
    process: int
    epoch: Epoch


class Acts:
    """What all processes have noted in one file."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._known: list[Act] = []

    def all(self) -> list[Act]:
        """In the order in which they were noted."""
        for line in self._file:
            at, name, process, bucket, revision = line.split()
            epoch = Epoch(bucket, int(revision))
            self._known.append(Act(float(at), name, int(process), epoch))
        return self._known

    def last(self) -> Act | None:
        """The latest."""
        found = self.all()
        return found[-1] if found else None

    def first_after(self, moment: float, *, not_by: int) -> Act | None:
        """The first one of any other process, from a moment on."""
        later = itertools.takewhile(lambda act: act.at > moment, reversed(self.all()))
        return min((act for act in later if act.process != not_by), default=None)

    def check(self, margin: float) -> None:
        """No two act at one time, also not nearly; every term is later than all before it."""
        for before, after in itertools.pairwise(sorted(self.all())):
            if before.process == after.process:
                assert before.epoch <= after.epoch, (before, after)
            else:
                assert before.epoch < after.epoch, (before, after)
                assert after.at - before.at > margin, (before, after)

    def close(self) -> None:
        """The file may go."""
        self._file.close()


async def contend(options: argparse.Namespace) -> None:
    """Until it is killed."""
    bus = await Bus.connect(options.nats, name=options.name)
    await until(KvBucket(bus, keys.LEADER).provision)
    lease = Lease(GatewayIdentity(bus, options.name, f"{options.name}-{os.getpid()}"))
    contending = asyncio.create_task(lease.run())
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while not contending.done():
        now = time.monotonic()  # first: it may be frozen between the two
        epoch = lease.epoch
        if epoch is not None:
            said = f"{now} {options.name} {os.getpid()} {epoch.bucket} {epoch.revision}\n"
            os.write(log, said.encode())
        await asyncio.sleep(EVERY_SECONDS)
    contending.result()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--log", required=True)
    loop.run(contend(parser.parse_args()))


if __name__ == "__main__":
    main()
