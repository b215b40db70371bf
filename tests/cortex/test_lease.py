"""The placer's lease: one holder at any moment, another one soon after it is gone."""

import asyncio
import contextlib
import itertools
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cortex.lease import MARGIN_SECONDS, Lease
from protocol import keys
from protocol.bus import KvBucket
from protocol.leader import Epoch
from tests.support.matrix import RUNS, report
from tests.support.nats import NatsServer, connected
from tests.support.processes import Process
from tests.support.proxy import proxy_to
from tests.support.waiting import background, until

TAKEOVER_SECONDS = keys.LEASE_SECONDS + 0.5


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@contextlib.asynccontextmanager
async def contender(url: str, name: str, clock: Clock | None = None) -> AsyncIterator[Lease]:
    async with connected(url, name) as bus:
        await until(KvBucket(bus, keys.LEADER).provision)
        lease = Lease(bus, name, f"i-{name}", clock=clock or Clock())
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


async def test_it_outlives_many_renewals_with_one_epoch(nats: NatsServer) -> None:
    async with contender(nats.url, "a") as a, contender(nats.url, "b") as b:
        await until(lambda: holders(a, b))
        (holder,) = holders(a, b)
        epochs = set()
        for _ in range(60):
            epochs.add(holder.epoch)
            await asyncio.sleep(0.1)
        assert len(epochs) == 1


async def test_a_partitioned_holder_stops_before_another_begins(nats: NatsServer) -> None:
    async with proxy_to(nats.url) as proxy, contender(proxy.url, "a") as a:
        await until(lambda: a.epoch)
        async with contender(nats.url, "b") as b:
            await asyncio.sleep(0.3)
            proxy.swallow()
            cut = asyncio.get_running_loop().time()
            while b.epoch is None:
                await asyncio.sleep(0.002)
                assert not (a.epoch and b.epoch)
            assert a.epoch is None
            assert asyncio.get_running_loop().time() - cut < TAKEOVER_SECONDS
            proxy.restore()
            await asyncio.sleep(1.0)
            assert a.epoch is None


async def test_a_holder_that_was_frozen_knows_at_once(nats: NatsServer) -> None:
    clock = Clock()
    async with contender(nats.url, "a", clock) as a:
        await until(lambda: a.epoch)
        before = a.epoch
        clock.ahead = keys.LEASE_SECONDS - MARGIN_SECONDS + 0.01
        assert a.epoch is None
        await until(lambda: a.epoch)
        assert a.epoch == before, "nobody had it in between"


async def test_a_restarted_server_keeps_it(nats: NatsServer) -> None:
    async with contender(nats.url, "a") as a, contender(nats.url, "b") as b:
        await until(lambda: holders(a, b))
        (holder,) = holders(a, b)
        before = holder.epoch
        nats.kill()
        await asyncio.sleep(0.3)
        nats.start()
        await asyncio.sleep(2.0)
        assert holders(a, b) == [holder]
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


class Act(NamedTuple):
    """A moment at which a process would have acted."""

    at: float
    name: str
    process: int
    revision: int


def acts(log: Path) -> list[Act]:
    found = []
    for line in log.read_text().splitlines():
        at, name, process, revision = line.split()
        found.append(Act(float(at), name, int(process), int(revision)))
    return sorted(found)


async def test_whoever_dies_or_freezes_there_is_one_placer(
    nats: NatsServer, tmp_path: Path
) -> None:
    log = tmp_path / "acts"
    log.touch()
    rng = random.Random(RUNS)
    processes = {}
    for name in ("gw-1", "gw-2", "gw-3"):
        command = [sys.executable, "-m", "tests.support.lease_holder", "--nats", nats.url]
        processes[name] = Process(
            name, [*command, "--name", name, "--log", str(log)], tmp_path / f"{name}.log"
        )
        await processes[name].start()
    loop = asyncio.get_running_loop()
    await until(lambda: acts(log), seconds=20)
    takeovers = []
    for _ in range(RUNS):
        await asyncio.sleep(rng.uniform(0.2, 1.5))
        last = acts(log)[-1]
        holder = processes[last.name]
        struck = loop.time()
        is_frozen = rng.random() < 0.4
        if is_frozen:
            holder.freeze()
        else:
            await holder.kill()
        await until(lambda gone=last: acts(log)[-1].process != gone.process, seconds=10)  # type: ignore[misc]
        takeovers.append(acts(log)[-1].at - struck)
        if is_frozen:
            holder.thaw()
        else:
            await holder.start()
    for process in processes.values():
        await process.kill()
    _audit(acts(log))
    report("placer killed or frozen: another takes over", takeovers, TAKEOVER_SECONDS)


def _audit(log: list[Act]) -> None:
    """No two act at one time, and every term is later than all before it."""
    for before, after in itertools.pairwise(log):
        if before.process != after.process:
            assert before.revision < after.revision, (before, after)
        else:
            assert before.revision <= after.revision
