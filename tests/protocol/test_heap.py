"""Memory is given back again and again, and nobody waits for it."""

import asyncio
import subprocess
import sys
import time

import pytest

from protocol.runtime import heap
from protocol.runtime.heap import keep_heap_small
from protocol.runtime.malloc import give_back_memory
from tests.support.waiting import background


async def test_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def slow() -> None:
        nonlocal given
        time.sleep(0.3)
        given += 1

    monkeypatch.setattr(heap, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(heap, "give_back_memory", slow)
    longest = 0.0
    async with background(keep_heap_small()):
        while given < 2:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - began)
    assert longest < 0.2, "nobody waits for it"
    ended = given
    await asyncio.sleep(0.4)
    assert given <= ended + 1


PROGRAM = """
from protocol.runtime.malloc import give_back_memory
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [bytearray(3000) for _ in range(20_000)]
some = pieces[::50]
del pieces
before = rss()
give_back_memory()
print(before - rss())
"""


def test_holes_are_given_back() -> None:
    """In a process of its own, whose heap has no other ones."""
    given = int(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True))
    assert given > 30 << 20


def test_it_can_be_given_back_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back_memory()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_back_memory()
