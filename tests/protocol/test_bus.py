"""The bus against a real nats-server, killed and restarted where it matters."""

import asyncio
import time
from collections.abc import Callable

import httpx2
import pytest

from protocol import keys, subjects
from protocol.bus import (
    Bus,
    BusMessage,
    Delivery,
    JobLanes,
    JobPuller,
    KvBucket,
    KvView,
    QueueFull,
)
from protocol.bus import lanes as lanes_module
from protocol.bus.connection import BusOverflow
from protocol.bus.jobs import STREAM
from protocol.job import Priority
from tests.support.nats import NatsServer, connected
from tests.support.waiting import background, until


async def test_oversized_messages_are_refused_before_they_kill_the_client(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        with pytest.raises(BusOverflow):
            await bus.publish("x", b"." * (bus.max_payload_bytes + 1))
        await bus.publish("x", b"." * bus.max_payload_bytes, headers={"a": "b" * 100})
        assert await bus.flush()
        assert bus.is_connected


async def test_a_handler_that_raises_does_not_stop_the_subscription(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        seen: list[bytes] = []

        def handler(message: BusMessage) -> None:
            seen.append(message.data)
            raise ValueError("boom")

        await bus.subscribe("s", handler)
        for data in (b"1", b"2"):
            await bus.publish("s", data)
        await until(lambda: seen == [b"1", b"2"])


async def test_what_is_subscribed_and_stopped_in_an_outage_is_not_left_at_the_server(
    nats: NatsServer,
) -> None:
    async with connected(nats.url) as bus:
        await bus.subscribe("kept", lambda _: None)
        seen: list[bytes] = []
        before = await bus.subscribe("before", lambda m: seen.append(m.data))
        nats.kill()
        await until(lambda: bus.is_reconnecting)
        await before.stop()
        during = await bus.subscribe("during", lambda m: seen.append(m.data))
        await during.stop()
        nats.start()
        await until(lambda: bus.reconnects == 1)
        await until(lambda: _subjects(nats, "test"), what="it is there again")
        assert "kept" in _subjects(nats, "test")
        await until(lambda: not {"before", "during"} & _subjects(nats, "test"), what="they go")
        for subject in ("before", "during"):
            await bus.publish(subject, b"x")
        await bus.flush()
        assert seen == []


def _subjects(nats: NatsServer, name: str) -> set[str]:
    """What a client has subscribed, as the server knows it."""
    connections = httpx2.get(f"{nats.monitor_url}/connz?subs=1").json()["connections"]
    lists = (c.get("subscriptions_list", ()) for c in connections if c.get("name") == name)
    return {subject for subjects in lists for subject in subjects}


async def test_messages_are_handled_as_they_are_read(nats: NatsServer) -> None:
    """Not in the subscription's own task; an update of nats-py that undoes it costs, silently."""
    async with connected(nats.url) as bus:
        tasks: list[asyncio.Task[None] | None] = []
        await bus.subscribe("s", lambda _: tasks.append(asyncio.current_task()))
        await bus.publish("s", b"")
        await until(lambda: tasks)
        assert tasks == [bus.client._reading_task]


async def test_view_follows_writes_deletes_and_expiry(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        bucket = KvBucket(bus, keys.NODES)
        assert await bucket.provision()
        assert await bucket.provision(), "provisioning is idempotent"
        await bucket.put("old.info", b'{"early":1}')
        changes: list[tuple[str, bytes | None]] = []
        view = KvView(bus, keys.NODES, lambda k, v: changes.append((k, v)))
        async with background(view.run()):
            await view.filled.wait()
            assert dict(view) == {"old.info": b'{"early":1}'}
            await bucket.put("a.info", b"1")
            await bucket.put("b.live", b"2", ttl_seconds=1)
            await until(lambda: view.get("b.live") == b"2")
            await bucket.delete("a.info")
            await until(lambda: view.get("a.info") is None)
            await until(lambda: view.get("b.live") is None, seconds=3)
        assert changes[-1] == ("b.live", None)
        assert dict(view) == {"old.info": b'{"early":1}'}


async def test_view_of_more_keys_than_one_batch(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        bucket = KvBucket(bus, keys.NODES)
        await bucket.provision()
        for start in range(0, 2100, 100):
            await asyncio.gather(
                *(bucket.put(f"n{i}.info", b"x") for i in range(start, start + 100))
            )
        view = KvView(bus, keys.NODES, lambda k, v: None)
        async with background(view.run()):
            await view.filled.wait()
            assert len(dict(view)) == 2100


async def test_view_catches_up_after_a_server_restart(nats: NatsServer) -> None:
    async with connected(nats.url, "reader") as reader, connected(nats.url, "writer") as writer:
        bucket = KvBucket(writer, keys.NODES)
        await bucket.provision()
        await bucket.put("gone.info", b"1")
        await bucket.put("kept.info", b"1")
        view = KvView(reader, keys.NODES, lambda k, v: None)
        async with background(view.run()):
            await view.filled.wait()
            nats.kill()
            nats.start()
            await until(lambda: writer.reconnects == 1)
            assert await bucket.put("kept.info", b"2"), "file storage outlives the server"
            await bucket.delete("gone.info")
            await until(lambda: view.get("kept.info") == b"2" and view.get("gone.info") is None)


async def test_put_without_a_bucket_says_so(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        assert not await KvBucket(bus, keys.NODES).put("a.info", b"1")


def _puller(
    bus: Bus, got: list[Delivery], room: Callable[[], bool], priority: int = 0
) -> JobPuller:
    return JobPuller(
        bus, "m/1.5", has_room=room, pull_priority=lambda: priority, deliver=got.append
    )


async def _publish(lanes: JobLanes, name: str, priority: Priority = Priority.NORMAL) -> int:
    return await lanes.publish(
        name.encode(), model="m/1.5", priority=priority, message_id=name, ttl_seconds=60
    )


async def test_jobs_are_pulled_only_with_room_and_redelivered_until_acknowledged(
    nats: NatsServer,
) -> None:
    async with connected(nats.url) as bus:
        lanes = JobLanes(bus)
        await lanes.provision()
        await lanes.provision_model("m/1.5")
        got: list[Delivery] = []
        slots = 2
        puller = _puller(bus, got, lambda: len(got) < slots)
        async with background(puller.run()):
            for name in ("a", "b", "c"):
                assert await _publish(lanes, name)
            await until(lambda: len(got) == 2)
            assert [d.deliveries for d in got] == [1, 1]
            await lanes.acknowledge(got[0].ack)
            slots = 4  # "b" was never acknowledged: it comes back after ack_wait
            puller.wake()
            await until(lambda: len(got) == 4)
        assert sorted(d.data for d in got) == [b"a", b"b", b"b", b"c"]
        assert max(d.deliveries for d in got) == 2


async def test_the_less_loaded_neuron_gets_the_job_and_high_priority_goes_first(
    nats: NatsServer,
) -> None:
    async with connected(nats.url) as bus:
        lanes = JobLanes(bus)
        await lanes.provision()
        await lanes.provision_model("m/1.5")
        busy: list[Delivery] = []
        idle: list[Delivery] = []
        async with (
            background(_puller(bus, busy, lambda: True, priority=7).run()),
            background(_puller(bus, idle, lambda: True, priority=1).run()),
        ):
            await until(lambda: _waiting_pulls(bus, 2))
            for number in range(6):
                await _publish(lanes, f"job{number}")
                await until(lambda n=number: len(idle) + len(busy) == n + 1)  # type: ignore[misc]
                await until(lambda: _waiting_pulls(bus, 2))
        assert (len(idle), len(busy)) == (6, 0)


async def _waiting_pulls(bus: Bus, count: int) -> bool:
    import json

    name = subjects.lane_consumer("m/1.5", Priority.NORMAL)
    info = json.loads(await bus.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{name}") or b"{}")
    return int(info.get("num_waiting", 0)) == count


async def test_pulls_are_renewed_after_a_server_restart(nats: NatsServer) -> None:
    async with connected(nats.url, "g") as gateway, connected(nats.url, "n") as neuron:
        lanes = JobLanes(gateway)
        await lanes.provision()
        await lanes.provision_model("m/1.5")
        got: list[Delivery] = []
        async with background(_puller(neuron, got, lambda: True).run()):
            await _publish(lanes, "before")
            await until(lambda: len(got) == 1)
            await lanes.acknowledge(got[0].ack)
            nats.kill()
            nats.start()
            await until(lambda: gateway.reconnects == neuron.reconnects == 1)
            await until(lambda: _publish(lanes, "after"), what="JetStream is back")
            # The acknowledgement may have been lost with the server: "before" may come again.
            await until(lambda: got[-1].data == b"after", seconds=2)


async def test_a_pull_is_idle_while_nothing_waits(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        lanes = JobLanes(bus)
        await lanes.provision()
        await lanes.provision_model("m/1.5")
        got: list[Delivery] = []
        room = True
        puller = _puller(bus, got, lambda: room)
        assert not puller.is_idle(Priority.LOW)
        async with background(puller.run()):
            await until(lambda: puller.is_idle(Priority.LOW))
            room = False
            await _publish(lanes, "a")
            await until(lambda: got)
            await until(lambda: not puller.is_idle(Priority.NORMAL))
            assert puller.is_idle(Priority.HIGH), "of that priority nothing came"


class Stopping:
    """A neuron that stops; what is delivered to it after that is lost."""

    def __init__(self, bus: Bus) -> None:
        self.got: list[Delivery] = []
        self.lost: list[Delivery] = []
        self.puller = JobPuller(
            bus, "m/1.5", has_room=lambda: True, pull_priority=lambda: 0, deliver=self._deliver
        )

    def _deliver(self, delivery: Delivery) -> None:
        is_closing = Priority.NORMAL not in self.puller._lanes
        (self.lost if is_closing else self.got).append(delivery)


async def test_a_neuron_that_stops_gives_back_what_was_on_its_way(nats: NatsServer) -> None:
    """Else the job would be missed until its ack_wait of a second has passed. What the server hands
    out in the same moment still is; so a few of twenty may."""
    late = 0
    async with (
        connected(nats.url, "g") as gateway,
        connected(nats.url, "a") as first,
        connected(nats.url, "b") as second,
    ):
        lanes = JobLanes(gateway)
        await lanes.provision()
        await lanes.provision_model("m/1.5")
        got: list[Delivery] = []
        async with background(_puller(second, got, lambda: True, priority=5).run()):
            for number in range(20):
                stopping = Stopping(first)
                async with background(stopping.puller.run()):
                    await until(lambda: _waiting_pulls(gateway, 2))
                    publishing = asyncio.create_task(_publish(lanes, f"job{number}"))
                    await asyncio.sleep(number / 10_000)
                await publishing
                began = time.monotonic()
                if not stopping.got:  # else it was quick enough to get the job as usual
                    await until(lambda: got)
                late += time.monotonic() - began > 0.5
                assert not stopping.lost
                for delivery in (*stopping.got, *got):
                    await lanes.acknowledge(delivery.ack)
                got.clear()
    assert late <= 4


async def test_a_neuron_that_starts_before_any_gateway_gets_jobs_later(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        got: list[Delivery] = []
        async with background(_puller(bus, got, lambda: True).run()):
            lanes = JobLanes(bus)
            await lanes.provision()
            await lanes.provision_model("m/1.5")
            await _publish(lanes, "a")
            await until(lambda: len(got) == 1, seconds=3)


async def test_a_full_lane_is_a_typed_refusal(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lanes_module.CONFIG, "max_msgs_per_subject", 2)
    async with connected(nats.url) as bus:
        lanes = JobLanes(bus)
        await lanes.provision()
        await _publish(lanes, "a")
        await _publish(lanes, "b")
        assert await _publish(lanes, "b"), "the same message id is not a new job"
        with pytest.raises(QueueFull):
            await _publish(lanes, "c")
