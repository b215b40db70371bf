"""What a node says of itself is written in the order in which it said it."""

import asyncio

from neuron.service.announcer import Announcer
from protocol import keys, subjects
from protocol.bus import KvBucket
from tests.support.nats import NatsServer, connected
from tests.support.waiting import until


async def test_a_node_is_known_before_its_models_also_when_nobody_kept_records_yet(
    nats: NatsServer,
) -> None:
    """A model of a node whose devices are not known would be taken for too large."""
    written: list[str] = []
    prefix = subjects.kv_update(keys.NODES, "")
    async with connected(nats.url) as bus:
        announcer = Announcer(bus)
        announcer.set(keys.node_info("n"), b"{}")
        for model in "abc":
            announcer.set(keys.node_model("n", model), b"{}")
        assert not await announcer.flush(), "there is no bucket"
        task = asyncio.create_task(announcer.run())
        await bus.subscribe(prefix + ">", lambda m: written.append(m.subject.removeprefix(prefix)))
        await until(KvBucket(bus, keys.NODES).provision)
        await until(lambda: len(written) == 4)
        task.cancel()
    models = [keys.node_model("n", model) for model in "abc"]
    assert written == [keys.node_info("n"), *models]
