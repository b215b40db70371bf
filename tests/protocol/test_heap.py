"""After a burst, memory is given back, some times and not for ever."""

import asyncio
import itertools
import subprocess
import sys
import time

import pytest

from protocol.runtime import heap, malloc
from protocol.runtime.heap import HeapKeeper
from protocol.runtime.malloc import give_back_memory, give_back_much_memory
from tests.support.waiting import until


async def test_memory_is_given_back_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(heap, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(heap, "TIMES", 3)
    monkeypatch.setattr(heap, "give_back_much_memory", lambda: given.append(loop.time()))
    keeper = HeapKeeper()
    for _ in range(5):
        keeper.note_burst()
    await until(lambda: len(given) == 3)
    await asyncio.sleep(0.1)
    assert len(given) == 3
    keeper.note_burst()
    await until(lambda: len(given) == 6)
    assert all(later - sooner > 0.005 for sooner, later in itertools.pairwise(given))


async def test_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def slow() -> None:
        nonlocal given
        time.sleep(0.3)
        given += 1

    monkeypatch.setattr(heap, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(heap, "TIMES", 2)
    monkeypatch.setattr(heap, "give_back_much_memory", slow)
    HeapKeeper().note_burst()
    longest = 0.0
    while given < 2:
        began = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - began)
    assert longest < 0.2


def test_it_can_be_given_back_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back_memory()
    give_back_much_memory()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_back_memory()
    give_back_much_memory()


PROGRAM = """
from protocol.runtime import malloc
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [bytearray(3000) for _ in range(3 * malloc.MUCH_BYTES // 3000)]
some = pieces[::50]
del pieces
seen = [malloc._free_bytes(), rss()]
malloc.give_back_much_memory()
print(*seen, rss())
"""


def test_much_is_given_back() -> None:
    """In a process of its own, whose heap has no holes yet."""
    done = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    free, before, after = map(int, done.split())
    assert free > 2 * malloc.MUCH_BYTES
    assert before - after > malloc.MUCH_BYTES


def test_a_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(malloc, "give_back_memory", lambda: given.append(0))
    monkeypatch.setattr(malloc, "_free_bytes", lambda: malloc.MUCH_BYTES - 1)
    malloc.give_back_much_memory()
    assert not given
