"""The keeper of the streams, against a real server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cortex.dispatch.hand_over import HandOver
from cortex.storage.keeper import Storage
from cortex.storage.kept_stream import KeptStream
from protocol import keys, subjects
from protocol.bus import Bus, BusMessage, Delivery, JobLanes, JobPuller, KvBucket, StorageError
from protocol.bus.jobs import IN_PROGRESS, STREAM
from protocol.generate import GenerateRequest
from protocol.job import Job, Priority
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


async def test_a_stream_that_has_stored_something_since_is_not_replaced(nats: NatsServer) -> None:
    """Neither by one failure long ago and another one now, nor while it stores."""
    async with connected(nats.url) as bus:
        stream = JobLanes(bus).stream
        old = await stream.ensure()
        await stream.probe()
        await stream.replace(old, only_if_dead=True)
        assert (await stream.info() or old).created == old.created
        kept, failures = KeptStream(stream, 0.0, lambda: 0), iter((True, False, True))

        async def fail(*_: Any) -> None:
            raise StorageError("not confirmed")

        for fails in failures:
            with pytest.MonkeyPatch.context() as patch:
                if fails:
                    patch.setattr(stream, "probe", fail)
                    await kept.look()
                else:
                    kept.confirmed()
        assert (await stream.info() or old).created == old.created


@pytest.mark.parametrize("edit", [{"deny_delete": True}, {"deny_purge": True}])
@pytest.mark.parametrize("name", [STREAM, f"KV_{keys.NODES}"])
async def test_what_cannot_be_taken_back_is_replaced(
    nats: NatsServer, name: str, edit: dict[str, object]
) -> None:
    async with keeping(nats, list) as (storage, bus):
        answer = await bus.request(f"$JS.API.STREAM.INFO.{name}")
        config = json.loads(answer or b"{}")["config"] | edit
        config["allow_rollup_hdrs"] = config.get("allow_rollup_hdrs") and "deny_purge" not in edit
        answer = await bus.request(f"$JS.API.STREAM.UPDATE.{name}", json.dumps(config).encode())
        assert "error" not in json.loads(answer or b"{}")
        storage.doubt()
        await asyncio.sleep(2.5)
        assert not storage.troubles


def a_job() -> Job:
    return Job(id="j", gateway="g", request=GenerateRequest(model="m"), seed=1, rendered_at=0.0)


async def test_a_job_that_is_being_prepared_is_not_stuck(nats: NatsServer) -> None:
    deliveries: list[Delivery] = []
    async with keeping(nats, lambda: ["m"]) as (storage, bus), connected(nats.url, "n") as node:
        hand_over = HandOver(bus, storage, has_room=lambda _: True)
        puller = JobPuller(
            node, "m", has_room=lambda: True, pull_priority=lambda: 1, deliver=deliveries.append
        )
        async with background(puller.run()):
            stored = await hand_over.publish(a_job())
            for _ in range(10):
                await asyncio.sleep(0.5)
                await node.publish(deliveries[0].ack, IN_PROGRESS)
        assert len(deliveries) == 1
        assert not stored.is_lost


@pytest.mark.parametrize(
    "edit",
    [
        {"pause_until": "2130-01-01T00:00:00Z"},
        {"filter_subject": "cortex.job.x.y"},
        {"headers_only": True},
        {"max_ack_pending": 1},
        {"deliver_subject": "somewhere", "priority_policy": "none", "priority_groups": None},
    ],
)
async def test_a_lane_that_somebody_has_changed_delivers_again(
    nats: NatsServer, edit: dict[str, object]
) -> None:
    deliveries: list[Delivery] = []
    async with keeping(nats, lambda: ["m"]) as (storage, bus), connected(nats.url, "n") as node:
        hand_over = HandOver(bus, storage, has_room=lambda _: True)
        await until(lambda: hand_over.provision("m"))
        name = subjects.lane_consumer("m", Priority.NORMAL)
        answer = await bus.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{name}")
        config = json.loads(answer or b"{}")["config"] | edit
        await bus.request(f"$JS.API.CONSUMER.DELETE.{STREAM}.{name}")
        body = json.dumps({"stream_name": STREAM, "config": config}).encode()
        await bus.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name}", body)
        puller = JobPuller(
            node, "m", has_room=lambda: True, pull_priority=lambda: 1, deliver=deliveries.append
        )
        waiting = [await hand_over.publish(a_job()) for _ in range(2)]
        async with background(puller.run()):
            await until(lambda: len(deliveries) > 1, seconds=8)
        assert not any(stored.is_lost for stored in waiting)


async def test_lanes_that_a_node_pulls_from_stay(nats: NatsServer) -> None:
    """Another gateway may serve nodes that this one must not use."""
    async with keeping(nats, list, keep_seconds=1.0) as (storage, bus):
        await storage.lanes.provision_model("m")
        async with connected(nats.url, "n") as node:
            puller = JobPuller(
                node, "m", has_room=lambda: True, pull_priority=lambda: 1, deliver=lambda _: None
            )
            async with background(puller.run()):
                await asyncio.sleep(4.0)
                assert await consumers(bus) >= lanes_of("m")
        await until(lambda: is_without_lanes(bus), seconds=8)


async def is_without_lanes(bus: Bus) -> bool:
    return not await consumers(bus)


ODD = [b"hello", b"[]", b"5", b'{"error":"x"}', b'{"consumers":5}', b'{"error":{"code":"x"}}']


@pytest.mark.parametrize("answer", ODD)
async def test_odd_answers_end_nobody(nats: NatsServer, answer: bytes) -> None:
    async with connected(nats.url) as bus, connected(nats.url, "other") as other:
        storage = Storage(bus, models=lambda: ["m"])
        bucket = KvBucket(bus, keys.NODES)
        answers: set[asyncio.Task[None]] = set()

        def reply(message: BusMessage) -> None:
            if message.reply:
                answers.add(asyncio.create_task(other.publish(message.reply, answer)))

        for subject in ("$JS.API.>", "$KV.>"):
            await other.subscribe(subject, reply)
        running = asyncio.create_task(storage.run())
        for _ in range(10):
            await bucket.put("a", b"b")
            await bucket.put_if("a", b"b", after=0)
            await bucket.read("a")
            await bucket.created()
        await asyncio.sleep(0.5)
        assert not running.done()
        running.cancel()
