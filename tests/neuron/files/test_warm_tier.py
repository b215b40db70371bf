"""The warm tier: what is locked, for how long, and why not."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from neuron.files import locked_pages as pages_module
from neuron.files.locked_pages import ByteRange, LockedPages, PagesError, may_lock
from neuron.files.warm_tier import WarmTier, check
from neuron.hardware.host import Host
from protocol.runtime.settings import SettingsError
from protocol.runtime.sizes import MIB
from tests.support.model_folders import weights, write
from tests.support.page_cache import cached_share, forget, locked_bytes
from tests.support.up import environment
from tests.support.waiting import until

PAGE = os.sysconf("SC_PAGE_SIZE")
PIECE = 16 * PAGE
needs_locking = pytest.mark.skipif(not may_lock(4 * MIB), reason="no memory may be locked here")

MakeModel = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> MakeModel:
    """Writes a model whose weights take so many pages (the last one in part)."""

    def make(name: str, pages: int = 32) -> Path:
        data = os.urandom(pages * PAGE - 100)
        return write(tmp_path / name, model__safetensors=weights(data=data))

    return make


@pytest.fixture
async def warm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WarmTier]:
    """Room for two models and a half; a page is locked at a time, nearly."""
    monkeypatch.setattr(pages_module, "PIECE_BYTES", PIECE)
    tier = WarmTier(80 * PAGE)
    yield tier
    await tier.close()
    assert locked_bytes() == 0


@needs_locking
async def test_pages_stay_until_they_are_dropped(warm: WarmTier, model: MakeModel) -> None:
    folder = model("a")
    assert await warm.keep("a", folder) == ""
    assert warm.held == {"a": 32 * PAGE}
    assert locked_bytes() == 32 * PAGE
    forget(folder / "model.safetensors")
    assert cached_share(folder / "model.safetensors") == 1
    warm.drop("a")
    assert warm.held == {}
    await until(lambda: locked_bytes() == 0)
    forget(folder / "model.safetensors")
    assert cached_share(folder / "model.safetensors") == 0
    warm.drop("a")


@needs_locking
async def test_what_is_on_disk_only_is_read(warm: WarmTier, model: MakeModel) -> None:
    folder = model("a")
    forget(folder / "model.safetensors")
    assert await warm.keep("a", folder) == ""
    assert cached_share(folder / "model.safetensors") == 1


@needs_locking
async def test_shards_count_in_whole_pages_and_others_do_not(
    warm: WarmTier, tmp_path: Path
) -> None:
    index = b'{"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}'
    folder = write(tmp_path, model__safetensors__index__json=index)
    for name, size in (("one", 1), ("two", PAGE + 1), ("other", PAGE)):
        (folder / f"{name}.safetensors").write_bytes(bytes(size))
    assert await warm.keep("m", folder) == ""
    assert warm.held == {"m": 3 * PAGE}
    assert locked_bytes() == 3 * PAGE


@needs_locking
async def test_the_first_one_goes_first(warm: WarmTier, model: MakeModel) -> None:
    for name in "abc":
        assert await warm.keep(name, model(name)) == ""
    assert list(warm.held) == ["b", "c"]
    warm.touch("b")
    warm.touch("unknown")
    assert await warm.keep("d", model("d")) == ""
    assert list(warm.held) == ["b", "d"]
    assert await warm.keep("big", model("big", 64)) == ""
    assert list(warm.held) == ["big"]
    assert locked_bytes() == 64 * PAGE


@needs_locking
async def test_to_the_budget_and_no_further(warm: WarmTier, model: MakeModel) -> None:
    assert await warm.keep("a", model("a", 40)) == ""
    assert await warm.keep("b", model("b", 40)) == ""
    assert list(warm.held) == ["a", "b"]
    assert await warm.keep("c", model("c", 1)) == ""
    assert list(warm.held) == ["b", "c"]
    assert await warm.keep("whole", model("whole", 80)) == ""
    assert warm.held == {"whole": 80 * PAGE}


@needs_locking
async def test_more_than_the_budget_is_not_kept_and_costs_nobody(
    warm: WarmTier, model: MakeModel
) -> None:
    assert await warm.keep("a", model("a")) == ""
    why = await warm.keep("huge", model("huge", 81))
    assert why == "its weights take 324 KiB, but host_cache_mb allows 320 KiB for all models"
    assert warm.held == {"a": 32 * PAGE}


@needs_locking
async def test_the_budget_holds_at_every_moment(
    warm: WarmTier, model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    topk = []
    lock = LockedPages.lock

    def watched(self: LockedPages, piece: ByteRange) -> None:
        lock(self, piece)
        topk.append(locked_bytes())

    monkeypatch.setattr(LockedPages, "lock", watched)
    folders = {name: model(name) for name in "abcde"}
    keeps = [warm.keep(name, folder) for name, folder in folders.items()]
    assert await asyncio.gather(*keeps) == [""] * 5
    assert max(topk) == 64 * PAGE
    assert list(warm.held) == ["d", "e"]


class _Held:
    """Stops the locking thread before its second piece."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.pieces = 0
        lock = LockedPages.lock

        def slowly(pages: LockedPages, piece: ByteRange) -> None:
            self.pieces += 1
            if self.pieces == 2:
                self.reached.set()
                assert self.go_on.wait(10)
            lock(pages, piece)

        monkeypatch.setattr(LockedPages, "lock", slowly)


@needs_locking
@pytest.mark.parametrize("how", ["drop", "cancel", "close"])
async def test_given_up_midway(
    how: str, warm: WarmTier, model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = model("a", 80), model("b")
    held = _Held(monkeypatch)
    keeping = asyncio.create_task(warm.keep("a", folders[0]))
    waiting = asyncio.create_task(warm.keep("a", folders[0]))
    await until(held.reached.is_set)  # the loop runs while the thread is in the kernel
    assert locked_bytes() == PIECE
    assert warm.held == {}
    after = asyncio.create_task(warm.keep("b", folders[1]))
    closing = asyncio.create_task(warm.close()) if how == "close" else None
    await asyncio.sleep(0)
    if how == "cancel":
        keeping.cancel()
        waiting.cancel()
    elif how == "drop":
        warm.drop("a")
    held.go_on.set()
    results = [*await asyncio.gather(keeping, waiting, after, return_exceptions=True)]
    if closing:
        await closing
        assert results[0] == "it was dropped meanwhile"
        assert results[1:] == ["the warm tier is closed"] * 2
    elif how == "drop":
        assert results == ["it was dropped meanwhile"] * 2 + [""]
    else:
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert held.pieces == 2 + (2 if how != "close" else 0), "no piece after it was given up"
    assert locked_bytes() == sum(warm.held.values()) == (0 if how == "close" else 32 * PAGE)


@needs_locking
async def test_what_was_dropped_before_its_turn_costs_nobody(
    warm: WarmTier, model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = model("a"), model("b", 80)
    held = _Held(monkeypatch)
    keeping = asyncio.create_task(warm.keep("a", folders[0]))
    await until(held.reached.is_set)
    waiting = asyncio.create_task(warm.keep("b", folders[1]))
    await asyncio.sleep(0)
    warm.drop("b")
    held.go_on.set()
    assert (await keeping, await waiting) == ("", "it was dropped meanwhile")
    assert warm.held == {"a": 32 * PAGE}


@needs_locking
async def test_a_failure_midway_leaves_nothing(
    warm: WarmTier, model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model("a")
    held = _Held(monkeypatch)
    keeping = asyncio.create_task(warm.keep("a", folder))
    await until(held.reached.is_set)
    os.truncate(folder / "model.safetensors", PIECE)
    held.go_on.set()
    assert await keeping == (
        f"{folder / 'model.safetensors'} cannot be read completely: it was truncated, or its disk "
        "is failing"
    )
    assert warm.held == {}
    await until(lambda: locked_bytes() == 0)


@needs_locking
async def test_replaced_files_are_held_anew(
    warm: WarmTier, model: MakeModel, tmp_path: Path
) -> None:
    folder, other = model("a"), model("b", 48)
    assert await warm.keep("a", folder) == ""
    assert await warm.keep("other", model("other")) == ""
    assert await warm.keep("a", folder) == ""
    assert list(warm.held) == ["other", "a"], "the same files are only touched"
    os.replace(other / "model.safetensors", folder / "model.safetensors")
    forget(folder / "model.safetensors")
    assert await warm.keep("a", folder) == ""
    assert warm.held == {"other": 32 * PAGE, "a": 48 * PAGE}
    assert locked_bytes() == 80 * PAGE
    assert cached_share(folder / "model.safetensors") == 1


@needs_locking
async def test_a_missing_file_and_a_missing_folder(warm: WarmTier, model: MakeModel) -> None:
    folder = model("a")
    assert await warm.keep("a", folder) == ""
    (folder / "model.safetensors").unlink()
    assert "has no *.safetensors" in await warm.keep("a", folder)
    why = await warm.keep("a", folder / "nowhere")
    assert why.startswith(f"{folder / 'nowhere'} cannot be read: No such file or directory.")
    assert warm.held == {}


@needs_locking
async def test_an_empty_file_is_no_trouble(warm: WarmTier, tmp_path: Path) -> None:
    assert await warm.keep("a", write(tmp_path, model__safetensors=b"")) == ""
    assert warm.held == {"a": 0}


@needs_locking
async def test_closed_is_closed(warm: WarmTier, model: MakeModel) -> None:
    folder = model("a")
    assert await warm.keep("a", folder) == ""
    await warm.close()
    assert (warm.held, locked_bytes()) == ({}, 0)
    assert await warm.keep("a", folder) == "the warm tier is closed"
    warm.drop("a")
    await warm.close()


def host(tmp_path: Path, *, total_mib: int, free_mib: int) -> Host:
    """A host with so much memory."""
    lines = f"MemTotal: {total_mib * 1024} kB\nMemAvailable: {free_mib * 1024} kB\n"
    (tmp_path / "meminfo").write_text(lines)
    return Host(proc=tmp_path, cgroup=tmp_path)


@needs_locking
async def test_the_last_memory_of_the_host_is_left_to_others(
    tmp_path: Path, model: MakeModel
) -> None:
    warm = WarmTier(MIB, host(tmp_path, total_mib=20480, free_mib=1024))
    why = await warm.keep("a", model("a"))
    assert why == "the host has only 1 GiB of free memory, of which 1 GiB must stay free"
    assert warm.held == {}
    await warm.close()


def test_a_budget_above_the_free_memory_is_refused(tmp_path: Path) -> None:
    small = host(tmp_path, total_mib=8, free_mib=4)
    check(0, small)
    with pytest.raises(SettingsError) as caught:
        check(5 * MIB, small)
    assert str(caught.value) == (
        "host_cache_mb = 5: only 4 MiB of memory are free on this host, and the engines need "
        "some of that too. Set it lower, or to 0 to keep nothing."
    )


@needs_locking
def test_a_budget_within_the_limits_is_taken_and_locks_nothing() -> None:
    check(4 * MIB)
    assert locked_bytes() == 0


def lowly(program: str, *arguments: object, limit_bytes: int = 64 * MIB) -> list[str]:
    """The lines of *program*, run with no privileges over memory and files."""
    begin = f"from tests.support.lowly import become_lowly; become_lowly({limit_bytes})\n"
    begin += "import asyncio, sys\nfrom pathlib import Path\n"
    begin += "from neuron.files.warm_tier import WarmTier, check\n"
    command = [sys.executable, "-c", begin + program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


_CHECK = """
for mib in map(int, sys.argv[1:]):
    try:
        check(mib << 20)
        print("taken")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_limit_below_the_budget_is_refused_with_the_remedy() -> None:
    refused, taken = lowly(_CHECK, 3, 1, limit_bytes=2 * MIB)
    assert refused == (
        "SettingsError host_cache_mb = 3: this process may lock only 2 MiB of memory "
        "(RLIMIT_MEMLOCK). Set LimitMEMLOCK=3M in the systemd unit, or 'ulimit -l 3072' (in "
        "containers --ulimit memlock=3145728) before starting; or set host_cache_mb = 0 to keep "
        "nothing."
    )
    assert taken == "taken"
    assert "only 0 bytes of memory" in lowly(_CHECK, 1, limit_bytes=0)[0]


_KEEP = """
async def main():
    warm = WarmTier(8 << 20)
    print(await warm.keep("m", Path(sys.argv[1])), warm.held)
asyncio.run(main())
"""


@pytest.mark.parametrize(("limit_bytes", "words"), [(PAGE * 16, "64 KiB"), (0, "0 bytes")])
def test_a_limit_that_is_met_midway(model: MakeModel, limit_bytes: int, words: str) -> None:
    (line,) = lowly(_KEEP, model("a"), limit_bytes=limit_bytes)
    assert line == f"this process may lock only {words} of memory in total (RLIMIT_MEMLOCK) {{}}"


def test_an_unreadable_file(model: MakeModel) -> None:
    folder = model("a")
    (folder / "model.safetensors").chmod(0)
    (line,) = lowly(_KEEP, folder)
    assert line == f"{folder / 'model.safetensors'} cannot be read: Permission denied {{}}"


def test_mapping_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PagesError, match="cannot be read: "):
        LockedPages().map([tmp_path])
