"""nats-py's client writes to connections that are closed already, by every path there is."""

import asyncio
import importlib.metadata
import inspect
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from protocol.bus import Bus, BusMessage
from protocol.bus.client import GuardedClient, GuardedTransport
from tests.support.nats import NatsServer, connected
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent


def test_the_hooks_into_nats_py_are_where_they_were() -> None:
    """Another version of nats-py may have moved them: then read its source, and change the pin."""
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"nats-py=={importlib.metadata.version('nats-py')}" in pinned
    for name, parameters in (
        ("_build_message", ["sid", "subject", "reply", "data", "headers"]),
        ("_close", ["status", "do_cbs"]),
        ("_connect_to_server", ["s"]),
        ("_flush_pending", ["force_flush"]),
        ("_process_op_err", ["e"]),
        ("_process_pong", []),
    ):
        assert list(inspect.signature(getattr(Client, name)).parameters) == ["self", *parameters]
    state = ["_transport", "_pongs", "_subs", "_status", "_reading_task", "_flusher_task"]
    state += ["_ping_interval_task", "_reconnection_task"]
    assert set(state) <= set(vars(Client()))
    assert "_io_writer" in vars(TcpTransport())
    subscription = Subscription(Client(), cb=_nothing)
    assert {"_cb", "_closed"} <= set(vars(subscription))


async def _nothing(message: Any) -> None:
    """For a subscription that is never used."""


async def test_the_guards_are_in_place(nats: NatsServer) -> None:
    async with connected(nats.url) as bus:
        assert type(bus.client) is GuardedClient
        assert type(bus.client._transport) is GuardedTransport


def cut(bus: Bus) -> None:
    """The connection is closed in the client's own process, which has not noticed yet."""
    bus.client._transport.abort()


async def _publish(bus: Bus) -> None:
    await bus.publish("x", b"kept")


async def _flush(bus: Bus) -> None:
    assert not await bus.flush(timeout=0.1)


async def _request(bus: Bus) -> None:
    assert await bus.request("nobody", timeout=0.1) is None


async def _subscribe_and_stop(bus: Bus) -> None:
    await (await bus.subscribe("other", lambda _: None)).stop()


async def _subscribe_and_drain(bus: Bus) -> None:
    await (await bus.subscribe("other", lambda _: None)).drain()


async def _write_much(bus: Bus) -> None:
    for _ in range(20):
        await bus.publish("much", bytes(1 << 20))


async def _ping(bus: Bus) -> None:
    for _ in range(10):  # asyncio complains about the sixth
        await bus.client._send_ping()


ACTS = (
    *(_publish, _flush, _request, _subscribe_and_stop, _subscribe_and_drain),
    *(_write_much, _ping),
)


@pytest.mark.parametrize("act", ACTS)
async def test_a_connection_that_was_closed_is_made_again(
    nats: NatsServer, act: Callable[[Bus], Awaitable[None]]
) -> None:
    async with connected(nats.url) as bus:
        seen: list[BusMessage] = []
        await bus.subscribe("x", seen.append)
        await bus.flush()
        cut(bus)
        await act(bus)
        await bus.publish("x", b"last")
        await until(lambda: bus.reconnects == 1)
        await until(lambda: [m.data for m in seen][-1:] == [b"last"])
        assert [m.data for m in seen[:-1]] in ([], [b"kept"])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("is_known", [False, True], ids=["unnoticed", "noticed"])
async def test_a_bus_whose_server_is_gone_closes_in_silence(
    nats: NatsServer, act: Callable[[Bus], Awaitable[None]], *, is_known: bool
) -> None:
    bus = await Bus.connect(nats.url, name="test")
    await bus.subscribe("x", lambda _: None)
    nats.kill()
    if is_known:
        await until(lambda: bus.is_reconnecting)
    else:
        cut(bus)
    await act(bus)
    async with asyncio.timeout(3):
        await bus.close()
    assert bus.closed.is_set()
    await bus.close()


async def test_the_flusher_is_gone_and_the_connection_too(nats: NatsServer) -> None:
    """What nats-py then writes in the caller's own task comes out of no door of the bus."""
    async with connected(nats.url) as bus:
        await bus.flush()
        bus.client._flusher_task.cancel()
        await asyncio.sleep(0)
        cut(bus)
        await bus.publish("x", b"1")
        await until(lambda: bus.reconnects == 1)


async def test_a_frozen_server_that_reads_nothing_holds_nobody_up(nats: NatsServer) -> None:
    bus = await Bus.connect(nats.url, name="test")
    nats.freeze()
    try:
        for _ in range(40):
            async with asyncio.timeout(0.5):
                await bus.publish("x", bytes(1 << 20))
    except TimeoutError:
        pass
    try:
        async with asyncio.timeout(4):
            await bus.close()
    finally:
        nats.thaw()
    assert bus.closed.is_set()


async def test_an_answer_to_a_flush_that_was_given_up_leaves_the_client_its_ears(
    nats: NatsServer,
) -> None:
    async with connected(nats.url) as bus:
        seen: list[BusMessage] = []
        await bus.subscribe("x", seen.append)
        await bus.flush()
        nats.freeze()
        try:
            assert not await bus.flush(timeout=0.1)
        finally:
            nats.thaw()
        await bus.publish("x", b"1")
        await until(lambda: seen, seconds=1)
        assert bus.reconnects == 0
