"""Connecting to servers of all kinds: one clear line for each that will not do."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.bus import Bus, BusSetupError
from tests.support.nats import NatsServer, connected, running_nats


async def test_a_dead_server_is_one_clear_line_within_the_deadline() -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(BusSetupError, match=r"no NATS server answers at nats://127.0.0.1:9"):
        await Bus.connect("nats://127.0.0.1:9", name="t", deadline_seconds=1.0)
    assert asyncio.get_running_loop().time() - started < 2.5


async def test_a_malformed_url_is_one_clear_line() -> None:
    with pytest.raises(BusSetupError, match="no NATS server answers"):
        await Bus.connect("not a url", name="t", deadline_seconds=1.0)


@pytest.mark.parametrize("payload", ["1MB", "2MB", "8MB", "64MB"])
async def test_a_server_as_it_comes_is_accepted(
    tmp_path: Path, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One megabyte is nats-server's own default, and little for prompts."""
    with running_nats(tmp_path, extra=f"max_payload: {payload}\n") as server:
        async with connected(server.url) as bus:
            assert bus.is_connected
    told = [record.getMessage() for record in caplog.records if "max_payload" in record.message]
    assert bool(told) is (payload in ("1MB", "2MB")), told


async def test_a_server_for_small_messages_is_refused(tmp_path: Path) -> None:
    too_small = r"max_payload = 524,288 bytes.*at least 1,048,576"
    with (
        running_nats(tmp_path, extra="max_payload: 512KB\n") as server,
        pytest.raises(BusSetupError, match=too_small),
    ):
        await Bus.connect(server.url, name="t")


@pytest.mark.parametrize("name", ["a b", "x\r\nPUB evil 1\r\n", "y" * 5000, "\x00", "a..b", ""])
async def test_what_is_no_subject_costs_a_message_and_not_the_connection(
    nats: NatsServer, name: str
) -> None:
    async with connected(nats.url) as bus:
        await bus.publish(f"cortex.reply.{name}.job", b"x")
        assert await bus.request(f"cortex.reply.{name}.job", b"x", timeout=0.1) is None
        await bus.publish("cortex.reply.gw.job", b"x", reply=name)
        assert await bus.flush()
        assert (bus.is_connected, bus.reconnects) == (True, 0)


async def test_a_refused_login_is_one_clear_line(tmp_path: Path) -> None:
    with running_nats(tmp_path, extra='authorization { token: "secret" }\n') as server:
        with pytest.raises(BusSetupError, match="refuses the login"):
            await Bus.connect(server.url, name="t", token="wrong")
        bus = await Bus.connect(server.url, name="t", token="secret")
        assert bus.is_connected
        await bus.close()


async def test_a_server_without_jetstream_is_one_clear_line(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    server.start()
    server.kill()
    config = tmp_path / "nats.conf"
    config.write_text("\n".join(x for x in config.read_text().splitlines() if "jetstream" not in x))
    process = subprocess.Popen([_binary(), "-c", str(config), "-p", server.url.rpartition(":")[2]])
    try:
        with pytest.raises(BusSetupError, match="JetStream is off"):
            await Bus.connect(server.url, name="t")
    finally:
        process.kill()
        process.wait()


def _binary() -> str:
    return os.path.join(os.path.dirname(sys.executable), "nats-server")


async def test_an_older_server_is_refused(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.bus.connection.MINIMUM_SERVER", (99, 0))
    with pytest.raises(BusSetupError, match=r"is version 2\.\d+\.\d+; 99\.0 or newer is needed"):
        await Bus.connect(nats.url, name="t")
