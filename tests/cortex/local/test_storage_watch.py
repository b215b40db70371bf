"""When the embedded server is restarted because nothing can be stored."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from cortex.local import storage_watch
from cortex.local.storage_watch import StorageWatch


async def watched(folder: Path) -> list[str]:
    """What it restarts within half a second, and why."""
    asked: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await StorageWatch("http://nowhere", folder, asked.append).run()
    return asked


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(storage_watch, "PATIENCE_SECONDS", 0.05)


async def test_a_server_that_stores_nothing_is_restarted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_watch, "why_nothing_is_stored", lambda url: "JetStream is off")
    assert await watched(tmp_path) == ["JetStream is off"]


async def test_the_longer_it_does_not_help_the_rarer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_watch, "why_nothing_is_stored", lambda url: "too many bytes")
    monkeypatch.setattr(storage_watch, "AGAIN_SECONDS", 0.1)
    assert 2 <= len(await watched(tmp_path)) <= 3, "at 0.05, 0.15 and 0.35 s"


async def test_not_while_its_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_watch, "why_nothing_is_stored", lambda url: "no space left")
    monkeypatch.setattr(storage_watch, "ROOM_BYTES", 1 << 60)
    assert await watched(tmp_path) == []


async def test_nor_while_no_gateway_says_so(tmp_path: Path) -> None:
    assert await watched(tmp_path) == []
