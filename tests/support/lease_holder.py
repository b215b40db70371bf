"""A process that contends for the placer's lease, and notes in a file when it would act.

``python -m tests.support.lease_holder --nats URL --name gw-1 --log FILE``. Each line of the file is
a monotonic time, the name and the epoch's revision: what it would have signed an order with.
"""

import argparse
import asyncio
import os
import time

from cortex.lease import Lease
from protocol import keys, loop
from protocol.bus import Bus, KvBucket
from tests.support.waiting import until

EVERY_SECONDS = 0.01


async def contend(options: argparse.Namespace) -> None:
    """Until it is killed."""
    bus = await Bus.connect(options.nats, name=options.name)
    await until(KvBucket(bus, keys.LEADER).provision)
    lease = Lease(bus, options.name, f"{options.name}-{os.getpid()}")
    contending = asyncio.create_task(lease.run())
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while not contending.done():
        epoch = lease.epoch
        now = time.monotonic()
        if epoch is not None:
            os.write(log, f"{now} {options.name} {os.getpid()} {epoch.revision}\n".encode())
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
