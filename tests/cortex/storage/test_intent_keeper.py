"""What operators have said stays, unless a gateway takes it back."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from cortex.storage import intent_keeper
from cortex.storage.intent_keeper import IntentKeeper
from protocol import codec, keys, subjects
from protocol.bus import Bus, KvBucket
from protocol.placement import Pin
from tests.support.nats import NatsServer, connected
from tests.support.waiting import background, until

GATEWAYS = {"one", "two"}
KEY = keys.pin("m")


def pin(author: str, *nodes: str) -> bytes:
    return codec.encode(Pin(author, "m", nodes))


@contextlib.asynccontextmanager
async def keeping(nats: NatsServer) -> AsyncIterator[tuple[KvBucket, Bus, IntentKeeper]]:
    """A keeper that knows of one pin."""
    async with connected(nats.url) as bus:
        bucket = KvBucket(bus, keys.PLACEMENT)
        assert await bucket.provision()
        keeper = IntentKeeper(
            bus,
            keys.PLACEMENT,
            lambda key, value: None,
            is_kept=lambda key: key.startswith("pin."),
            author=lambda value: codec.read_pin(value).instance,
            is_gateway=GATEWAYS.__contains__,
        )
        assert await bucket.put(KEY, pin("one", "n1"))
        async with background(keeper.run()):
            await until(lambda: keeper.view.get(KEY))
            yield bucket, bus, keeper


async def value_of(bucket: KvBucket) -> bytes | None:
    stored = await bucket.read(KEY)
    return stored.value if stored else None


async def settled(bucket: KvBucket, expected: bytes | None) -> None:
    async def is_so() -> bool:
        return await value_of(bucket) == expected

    await until(is_so, seconds=3)
    await asyncio.sleep(2 * intent_keeper.MEND_SECONDS)
    assert await value_of(bucket) == expected


@pytest.mark.parametrize("operation", ["DEL", "PURGE"])
async def test_what_somebody_deletes_comes_back(nats: NatsServer, operation: str) -> None:
    async with keeping(nats) as (bucket, bus, _):
        headers = {"KV-Operation": operation}
        await bus.request(subjects.kv_write(keys.PLACEMENT, KEY), b"", headers=headers)
        await settled(bucket, pin("one", "n1"))


@pytest.mark.parametrize(
    "value", [b"words", b"{}", pin("stranger", "n9"), b'{"a":' * 5000 + b"1" + b"}" * 5000]
)
async def test_what_somebody_overwrites_comes_back(nats: NatsServer, value: bytes) -> None:
    async with keeping(nats) as (bucket, bus, _):
        await bus.request(subjects.kv_write(keys.PLACEMENT, KEY), value)
        await settled(bucket, pin("one", "n1"))


async def test_what_a_gateway_removes_stays_away(nats: NatsServer) -> None:
    async with keeping(nats) as (bucket, _, __):
        assert await bucket.delete(KEY)
        await settled(bucket, None)


async def test_what_a_gateway_changes_stays_changed(nats: NatsServer) -> None:
    async with keeping(nats) as (bucket, bus, _):
        assert await bucket.put(KEY, pin("two", "n2"))
        await settled(bucket, pin("two", "n2"))
        await bus.request(subjects.kv_write(keys.PLACEMENT, KEY), b"words")
        await settled(bucket, pin("two", "n2"))


async def test_a_gateway_that_is_heard_a_moment_later_is_one(nats: NatsServer) -> None:
    async with keeping(nats) as (bucket, _, __):
        try:
            assert await bucket.put(KEY, pin("three", "n3"))
            await asyncio.sleep(intent_keeper.MEND_SECONDS / 2)
            GATEWAYS.add("three")
            await settled(bucket, pin("three", "n3"))
        finally:
            GATEWAYS.discard("three")


@pytest.mark.parametrize("verb", ["DELETE", "PURGE"])
async def test_a_bucket_that_is_lost_is_filled_again(nats: NatsServer, verb: str) -> None:
    async with keeping(nats) as (bucket, bus, _):
        answer = await bus.request(f"$JS.API.STREAM.{verb}.KV_{keys.PLACEMENT}")
        assert "error" not in json.loads(answer or b"{}")
        assert await bucket.provision()
        await settled(bucket, pin("one", "n1"))


async def test_who_has_not_seen_the_bucket_for_long_takes_it_as_it_is(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that was frozen does not know what was removed meanwhile."""
    async with keeping(nats) as (bucket, bus, _):
        monkeypatch.setattr(intent_keeper, "SURE_SECONDS", 0.0)
        headers = {"KV-Operation": "DEL"}
        await bus.request(subjects.kv_write(keys.PLACEMENT, KEY), b"", headers=headers)
        await settled(bucket, None)


@pytest.mark.parametrize("verb", ["DELETE", "PURGE"])
async def test_what_goes_with_its_bucket_comes_back_however_long_nobody_saw_it(
    nats: NatsServer, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keeping(nats) as (bucket, bus, _):
        monkeypatch.setattr(intent_keeper, "SURE_SECONDS", 0.0)
        await bus.request(f"$JS.API.STREAM.{verb}.KV_{keys.PLACEMENT}")
        assert await bucket.provision()
        await settled(bucket, pin("one", "n1") if verb == "DELETE" else None)


async def test_what_an_older_gateway_removes_stays_away(nats: NatsServer) -> None:
    """It does not mark a removal as meant, but lets the marker expire."""
    async with keeping(nats) as (bucket, bus, _):
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "60"}
        await bus.request(subjects.kv_write(keys.PLACEMENT, KEY), b"", headers=headers)
        await settled(bucket, None)


async def test_keys_of_others_are_left_to_them(nats: NatsServer) -> None:
    async with keeping(nats) as (bucket, bus, _):
        key = keys.placement("n1", "m")
        assert await bucket.put(key, b"x")
        await asyncio.sleep(0.1)
        await bus.request(
            subjects.kv_write(keys.PLACEMENT, key), b"", headers={"KV-Operation": "DEL"}
        )
        await asyncio.sleep(2 * intent_keeper.MEND_SECONDS)
        stored = await bucket.read(key)
        assert stored is not None
        assert stored.value is None
