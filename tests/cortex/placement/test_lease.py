"""The placer's lease: one holder at any moment, another one soon after it is gone."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cortex.identity import GatewayIdentity
from cortex.placement.lease import Lease
from protocol import codec, keys
from protocol.bus import KvBucket
from protocol.leader import Epoch, LeaseRecord
from protocol.timing import NORMAL, Timing
from tests.support.lease_holder import Acts
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer, connected
from tests.support.processes import Process
from tests.support.proxy import proxy_to
from tests.support.waiting import background, until

pytestmark = pytest.mark.xdist_group("wall_clock")

TAKEOVER_SECONDS = NORMAL.lease_ttl_seconds + 0.5
APART_SECONDS = 0.2
"""Between the end of one placer and the beginning of the next that was not told of it."""


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@contextlib.asynccontextmanager
async def contender(
    url: str, name: str, clock: Clock | None = None, timing: Timing = NORMAL
) -> AsyncIterator[Lease]:
    async with connected(url, name) as bus:
        await until(KvBucket(bus, keys.LEADER).provision)
        identity = GatewayIdentity(bus, name, f"i-{name}", timing)
        lease = Lease(identity, clock=clock or Clock())
        async with background(lease.run()):
            yield lease


def holders(*leases: Lease) -> list[Lease]:
    return [lease for lease in leases if lease.epoch]


async def test_one_of_three_has_it_and_hands_it_over(nats: NatsServer) -> None:
    async with (
        contender(nats.url, "a") as a,
        contender(nats.url, "b") as b,
        contender(nats.url, "c") as c,
    ):
        await until(lambda: holders(a, b, c))
        await asyncio.sleep(0.5)
        (holder,) = holders(a, b, c)
        assert {lease.holder.gateway for lease in (a, b, c) if lease.holder} == {
            {a: "a", b: "b", c: "c"}[holder]
        }
        first = holder.epoch
        began = asyncio.get_running_loop().time()
        others = {a, b, c} - {holder}
        await holder.release()
        assert holder.epoch is None
        await until(lambda: holders(*others))
        assert asyncio.get_running_loop().time() - began < 0.5
        (second,) = holders(*others)
        assert first is not None
        assert second.epoch is not None
        assert first < second.epoch


async def test_who_gives_it_back_does_not_take_it_again(nats: NatsServer) -> None:
    async with contender(nats.url, "a") as a:
        await until(lambda: a.epoch)
        await a.release()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert await record(a) is None
            assert a.epoch is None


async def test_it_is_given_back_during_a_renewal(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal must not come after the removal, nor change the number that is removed."""
    put_if = KvBucket.put_if
    is_on_its_way = asyncio.Event()

    async def noted(bucket: KvBucket, *args: Any, **kwargs: Any) -> int | None:
        is_on_its_way.set()
        return await put_if(bucket, *args, **kwargs)

    async with contender(nats.url, "a") as a:
        await until(lambda: a.epoch)
        monkeypatch.setattr(KvBucket, "put_if", noted)
        a._woken.set()
        await is_on_its_way.wait()
        await a.release()
        assert await record(a) is None


async def record(lease: Lease) -> bytes | None:
    stored = await lease._bucket.read(keys.PLACER)
    assert stored is not None
    return stored.value


async def test_its_end_is_noticed_without_looking(nats: NatsServer) -> None:
    rarely = dataclasses.replace(NORMAL, lease_look_seconds=60.0)
    async with contextlib.AsyncExitStack() as life:
        a = await life.enter_async_context(contender(nats.url, "a", timing=rarely))
        await until(lambda: a.epoch)
        async with contender(nats.url, "b", timing=rarely) as b:
            await until(lambda: b.holder)
            died = time.monotonic()
            await life.aclose()  # without a word
            await until(lambda: b.epoch)
            assert time.monotonic() - died < TAKEOVER_SECONDS


async def test_it_outlives_many_renewals_with_one_epoch(nats: NatsServer) -> None:
    often = dataclasses.replace(NORMAL, lease_renew_seconds=0.1)
    async with (
        contender(nats.url, "a", timing=often) as a,
        contender(nats.url, "b", timing=often) as b,
    ):
        await until(lambda: holders(a, b))
        (holder,) = holders(a, b)
        epochs, first = set(), holder._sequence
        while holder._sequence < first + 25:
            epochs.add(holder.epoch)
            await asyncio.sleep(0.1)
        assert len(epochs) == 1


async def test_a_partitioned_holder_stops_before_another_begins(nats: NatsServer) -> None:
    async with proxy_to(nats.url) as proxy, contender(proxy.url, "a") as a:
        await until(lambda: a.epoch)
        async with contender(nats.url, "b") as b:
            await until(lambda: b.holder)
            proxy.swallow()
            cut = held = time.monotonic()
            while b.epoch is None:
                if a.epoch:
                    held = time.monotonic()
                await asyncio.sleep(0.002)
            began = time.monotonic()
            assert a.epoch is None
            assert began - held > APART_SECONDS
            assert began - cut < TAKEOVER_SECONDS
            proxy.restore()
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                assert a.epoch is None
                await asyncio.sleep(0.002)
            await until(lambda: a.holder and a.holder.gateway == "b")


async def test_what_is_won_and_lost_is_told_at_once(nats: NatsServer) -> None:
    async with proxy_to(nats.url) as proxy, connected(proxy.url) as bus:
        await until(KvBucket(bus, keys.LEADER).provision)
        told: list[Epoch | None] = []
        lease = Lease(GatewayIdentity(bus, "a", "i-a"), on_change=lambda: told.append(lease.epoch))
        async with background(lease.run()):
            await until(lambda: told)
            proxy.swallow()
            await until(lambda: len(told) == 2, seconds=NORMAL.lease_ttl_seconds)
            await asyncio.sleep(0.5)  # until the server has ended it as well
            proxy.restore()
            await until(lambda: len(told) == 3)
            await lease.release()
    first, second = told[0], told[2]
    assert first is not None
    assert second is not None
    assert first < second
    assert (told[1], told[3:]) == (None, [None])


async def test_a_holder_that_was_frozen_knows_at_once(nats: NatsServer) -> None:
    clock = Clock()
    async with contender(nats.url, "a", clock) as a:
        await until(lambda: a.epoch)
        before = a.epoch
        clock.ahead = NORMAL.lease_ttl_seconds - APART_SECONDS
        assert a.epoch is None
        await until(lambda: a.epoch)
        assert a.epoch == before, "nobody had it in between"


async def test_the_end_is_counted_from_before_the_request(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts from when it had it, however long its answer was on the way."""
    clock = Clock()
    put_if = KvBucket.put_if
    sequences: list[int | None] = []

    async def answered_late(bucket: KvBucket, *args: Any, **kwargs: Any) -> int | None:
        sequences.append(await put_if(bucket, *args, **kwargs))
        clock.ahead += NORMAL.lease_ttl_seconds - APART_SECONDS
        return sequences[-1]

    monkeypatch.setattr(KvBucket, "put_if", answered_late)
    async with contender(nats.url, "a", clock) as a:
        while len(sequences) < 3:
            assert a.epoch is None
            await asyncio.sleep(0.002)
    assert all(sequences)


@pytest.mark.parametrize("away_seconds", [0.3, 1.0])
async def test_a_restarted_server_keeps_it(nats: NatsServer, away_seconds: float) -> None:
    async with contender(nats.url, "a") as a, contender(nats.url, "b") as b:
        await until(lambda: holders(a, b))
        (holder,) = holders(a, b)
        before = holder.epoch
        nats.kill()
        await asyncio.sleep(away_seconds)
        nats.start()
        deadline = time.monotonic() + NORMAL.lease_ttl_seconds
        while time.monotonic() < deadline:
            assert holders(a, b) in ([holder], [])
            await asyncio.sleep(0.002)
        assert holder.epoch == before


async def test_a_server_that_has_forgotten_everything_counts_on(nats: NatsServer) -> None:
    async with contender(nats.url, "a") as a:
        await until(lambda: a.epoch)
        before = a.epoch
        await a._bus.request(f"$JS.API.STREAM.DELETE.KV_{keys.LEADER}")
        await KvBucket(a._bus, keys.LEADER).provision()
        await until(lambda: a.epoch and a.epoch != before)
        assert before is not None
        assert a.epoch is not None
        assert before < a.epoch


async def test_a_holder_that_returns_does_not_renew_what_is_not_its_own(nats: NatsServer) -> None:
    """The server has forgotten everything meanwhile, and counts anew: what another one has may have
    come to the number that this one knows."""
    clock = Clock()
    async with contender(nats.url, "a", clock) as a, connected(nats.url) as bus:
        await until(lambda: a.epoch)
        first = a.epoch
        await a._turn.acquire()  # frozen
        clock.ahead = 60.0
        await bus.request(f"$JS.API.STREAM.DELETE.KV_{keys.LEADER}")
        async with contender(nats.url, "b") as b:
            await until(lambda: b.epoch)
            second = b.epoch
            a._sequence = b._sequence
            a._turn.release()
            await until(lambda: a._epoch is None)
            value = codec.encode(LeaseRecord("i-b", "b"))
            renewed = b._sequence + 2
            while b._sequence < renewed:
                assert a.epoch is None
                assert b.epoch == second
                assert await record(b) == value
            assert first is not None
            assert second is not None
            assert first < second


async def test_a_purged_lease_is_still_its_holders(nats: NatsServer) -> None:
    """Nothing is left of it to tell, and others may look before its holder writes it again."""
    async with contender(nats.url, "a") as a, contender(nats.url, "b") as b:
        await until(lambda: a.epoch or b.epoch)
        holder, other = (a, b) if a.epoch else (b, a)
        stored = await other._bucket.read(keys.PLACER)
        assert stored is not None
        assert not other._is_free(stored)
        await holder._turn.acquire()  # it is slow
        await holder._bus.request(f"$JS.API.STREAM.PURGE.KV_{keys.LEADER}")
        while holder.epoch:
            assert other.epoch is None
            await asyncio.sleep(0.002)
        await until(lambda: other.epoch)
        holder._turn.release()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (Epoch("2026-01-01T00:00:00.500000000Z", 7), Epoch("2026-01-01T00:00:00.500000000Z", 8)),
        (Epoch("2026-01-01T00:00:00.500000000Z", 7), Epoch("2026-01-01T00:00:00.510000000Z", 1)),
        (Epoch("2026-01-01T00:00:00.000000000Z", 9), Epoch("2026-01-01T00:00:00.100000000Z", 1)),
    ],
)
def test_epochs_are_in_order(earlier: Epoch, later: Epoch) -> None:
    assert earlier < later


async def test_when_a_bucket_was_made_sorts(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        bucket = KvBucket(bus, keys.LEADER)
        await bucket.provision()
        created = await bucket.created()
    assert created is not None
    assert len(created) == len("2026-01-01T00:00:00.000000000Z")


# -- killed and frozen processes ---------------------------------------------------------------

FATES = ("killed", "frozen", "killed", "held up")


@contextlib.asynccontextmanager
async def contending_processes(url: str, folder: Path) -> AsyncIterator[dict[str, Process]]:
    found: dict[str, Process] = {}
    command = [sys.executable, "-m", "tests.support.lease_holder", "--nats", url]
    try:
        for name in ("gw-1", "gw-2", "gw-3"):
            options = ["--name", name, "--log", str(folder / "acts")]
            found[name] = Process(name, [*command, *options], folder / f"{name}.log")
            await found[name].start()
        yield found
    finally:
        for process in found.values():
            await process.kill()


async def test_whoever_dies_or_freezes_there_is_one_placer(
    nats: NatsServer, tmp_path: Path
) -> None:
    rng = random.Random(RUNS)
    takeovers = []
    with contextlib.closing(Acts(tmp_path / "acts")) as acts:
        async with contending_processes(nats.url, tmp_path) as processes:
            await until(acts.last, seconds=20)
            for fate in itertools.islice(itertools.cycle(FATES), max(RUNS, len(FATES))):
                await asyncio.sleep(rng.uniform(0.2, 1.5))
                await until(lambda: (last := acts.last()) and last.at > time.monotonic() - 0.05)
                last = acts.last()
                assert last is not None
                holder, struck = processes[last.name], time.monotonic()
                if fate == "held up":
                    holder.freeze()
                    await asyncio.sleep(rng.uniform(0.1, NORMAL.lease_ttl_seconds + 0.2))
                    holder.thaw()
                    continue
                await holder.kill() if fate == "killed" else holder.freeze()
                taken_over = functools.partial(acts.first_after, struck, not_by=last.process)
                await until(taken_over)
                first = taken_over()
                assert first is not None
                takeovers.append(first.at - struck)
                await holder.start() if fate == "killed" else holder.thaw()
        acts.check(APART_SECONDS)
    report("placer killed or frozen: another takes over", takeovers, TAKEOVER_SECONDS)
