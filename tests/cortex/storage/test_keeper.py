"""The keeper of the streams, against a real server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

from cortex.storage.keeper import Storage
from protocol import keys, subjects
from protocol.bus import Bus, JobLanes, KvBucket
from protocol.bus.jobs import STREAM
from protocol.job import Priority
from tests.support.nats import NatsServer, connected
from tests.support.waiting import background, until


async def consumers(bus: Bus) -> set[str]:
    return await JobLanes(bus).consumers()


def lanes_of(*models: str) -> set[str]:
    return {subjects.lane_consumer(model, one) for model in models for one in Priority}


@contextlib.asynccontextmanager
async def keeping(
    nats: NatsServer, models: Callable[[], list[str]], *, keep_seconds: float = 60.0
) -> AsyncIterator[tuple[Storage, Bus]]:
    async with connected(nats.url) as bus:
        storage = Storage(bus, models=models, keep_seconds=keep_seconds)
        async with background(storage.run()):
            await until(storage.lanes.stream.info, what="the stream is there")
            yield storage, bus


async def test_every_stream_is_made_and_made_again(nats: NatsServer) -> None:
    names = {STREAM, *(f"KV_{name}" for name in keys.BUCKETS)}

    async def there(bus: Bus) -> bool:
        answer = await bus.request("$JS.API.STREAM.NAMES")
        return names == set(json.loads(answer or b"{}").get("streams") or ())

    async with keeping(nats, list) as (_, bus):
        await until(lambda: there(bus))
        for name in names:
            await bus.request(f"$JS.API.STREAM.DELETE.{name}")
        await until(lambda: there(bus), seconds=3)


async def test_lanes_of_models_that_nobody_has_go(nats: NatsServer) -> None:
    models = ["a/1.5", "b"]
    async with keeping(nats, lambda: models, keep_seconds=1.5) as (_, bus):

        async def has(expected: set[str]) -> bool:
            return await consumers(bus) == expected

        strange = {"stream_name": STREAM, "config": {"durable_name": "x", "ack_policy": "explicit"}}
        strange["config"]["filter_subject"] = "cortex.job.x.y"  # type: ignore[index]
        await bus.request(
            f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.x", json.dumps(strange).encode()
        )
        await until(lambda: has({*lanes_of("a/1.5", "b"), "x"}))
        models.remove("a/1.5")
        await until(lambda: has({*lanes_of("b"), "x"}), seconds=5, what="and nobody else's")
        models.append("a/1.5")
        await until(lambda: has({*lanes_of("a/1.5", "b"), "x"}), seconds=3)


async def test_many_models_have_many_lanes(nats: NatsServer) -> None:
    """Not more than a third of the thousand consumers that nats-server allows a stream."""
    models = [f"m{number}" for number in range(300)]
    async with keeping(nats, lambda: models) as (_, bus):

        async def complete() -> bool:
            return await consumers(bus) == lanes_of(*models)

        await until(complete, seconds=20)


async def test_a_stream_that_an_operator_has_left_no_room_in_is_put_right(nats: NatsServer) -> None:
    async with keeping(nats, list) as (storage, bus):
        answer = await bus.request(f"$JS.API.STREAM.INFO.{STREAM}")
        config = json.loads(answer or b"{}")["config"]
        full = json.dumps({**config, "max_bytes": 1}).encode()
        await bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", full)
        storage.doubt()

        async def has_room() -> bool:
            info = await storage.lanes.stream.info()
            return info is not None and info.config["max_bytes"] > 1 and not storage.why_not

        await until(has_room, seconds=3)


async def test_two_gateways_replace_a_stream_once(nats: NatsServer) -> None:
    async with connected(nats.url, "one") as one, connected(nats.url, "other") as other:
        stream = KvBucket(one, keys.NODES).stream
        old = await stream.ensure()
        await asyncio.gather(stream.replace(old), KvBucket(other, keys.NODES).stream.replace(old))
        new = await stream.info()
        assert new is not None
        assert new.created != old.created
        await KvBucket(one, keys.NODES).put("a.info", b"{}")
        await KvBucket(other, keys.NODES).stream.replace(old)
        assert await stream.info() is not None
        stored = await KvBucket(one, keys.NODES).read("a.info")
        assert stored is not None
        assert stored.value == b"{}", "it was not replaced again"
