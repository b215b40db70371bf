"""The writer of a node's records: what it removes while the connection comes back."""

import asyncio

from neuron.service.residents.announcer import Announcer
from protocol import keys
from protocol.bus import KvBucket
from tests.support.nats import NatsServer, connected
from tests.support.waiting import background, until

KEY = "node-1.model.m"


async def test_a_record_that_is_removed_during_an_outage_ends_nothing(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        bucket = KvBucket(bus, keys.NODES)
        assert await bucket.provision()
        announcer = Announcer(bus, "node-1")
        async with background(announcer.run()) as running:
            for again in range(5):
                announcer.set(KEY, b"{}")
                await until(lambda: stored(bucket), seconds=5)
                nats.kill()
                await asyncio.sleep(0.1 * again)
                announcer.remove(KEY)  # buffered, and once more when the connection is back
                nats.start()
                await until(lambda: is_gone(bucket), seconds=10)
                await asyncio.sleep(0.3)
                assert not running.done()


async def stored(bucket: KvBucket) -> bool:
    found = await bucket.read(KEY)
    return found is not None and found.value == b"{}"


async def is_gone(bucket: KvBucket) -> bool:
    found = await bucket.read(KEY)
    return found is not None and found.value is None
