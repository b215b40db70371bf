"""The warm tier: keeps weights of unloaded models in host memory, within a budget.

Owns which models' files are locked in the page cache, and in which order they are dropped. A load
reads its files as usual, but never waits for a disk. Must not know engines, devices or records.

How the service uses it:

- ``keep`` right after a model's engine is gone. Not while it runs: an engine on a CPU has packed
  copies of its weights, and keeping the pages as well would double its memory; on a GPU the budget
  serves unloaded models better. Right after, because the pages from its load are mostly still
  cached, and the next model's load would push them out.
- ``touch`` when a load begins, so that the pages it reads are dropped last.
- ``drop`` when the load is over: the pages become ordinary cache again.

``held`` therefore lists what would load at memory speed. Locked memory is not available to engines:
on a CPU the budget for models is what the tier leaves over.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from neuron.files import sources
from neuron.files.locked_pages import ByteRange, LockedPages, PagesError, lock_limit, may_lock
from neuron.hardware.host import Host
from protocol.errors import FleetError
from protocol.runtime.settings import SettingsError
from protocol.runtime.sizes import MIB, size_text

log = logging.getLogger("warm")

LEFT_FREE_SHARE = 0.05
"""Share of the host's memory that must stay free. The kernel cannot reclaim locked pages: when
memory runs out it kills processes, and the largest are engines."""

P = ParamSpec("P")
T = TypeVar("T")


def check(budget_bytes: int, host: Host | None = None) -> None:
    """Raises ``SettingsError`` for a ``host_cache_mb`` that this process cannot provide.

    Refuses to start instead of starting without the tier: otherwise whoever set the budget would
    learn of it months later, from slow reloads.
    """
    mib = -(-budget_bytes // MIB)
    free_mib = (host or Host()).memory_free_bytes() // MIB
    if mib > free_mib:
        raise SettingsError(
            f"host_cache_mb = {mib}: only {free_mib} MiB of memory are free on this host, and the "
            "engines need some of that too. Set it lower, or to 0 to keep nothing."
        )
    if budget_bytes and not may_lock(budget_bytes):
        raise SettingsError(
            f"host_cache_mb = {mib}: this process may lock only {lock_limit()} of memory "
            f"(RLIMIT_MEMLOCK). Set LimitMEMLOCK={mib}M in the systemd unit, or 'ulimit -l "
            f"{mib * 1024}' (in containers --ulimit memlock={mib * MIB}) before starting; or set "
            "host_cache_mb = 0 to keep nothing."
        )


@dataclass(eq=False)
class _Order:
    """A call of ``keep`` that is still running."""

    model: str
    wanted: bool = True

    def check(self) -> None:
        """Raises :class:`PagesError` when the model was dropped meanwhile."""
        if not self.wanted:
            raise PagesError("it was dropped meanwhile")


class WarmTier:
    """The weights that are locked in memory. All methods belong to one event loop.

    One thread does all locking and unlocking, in the order decided here. What is dropped to make
    room is unlocked before the next byte is locked, so the budget holds at every moment.
    """

    def __init__(self, budget_bytes: int, host: Host | None = None) -> None:
        self._budget = budget_bytes
        self._host = host or Host()
        self._left_free = int(self._host.memory_bytes() * LEFT_FREE_SHARE)
        self._held: dict[str, LockedPages] = {}
        """Locked pages by model; the first one is dropped first."""
        self._orders: set[_Order] = set()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warm")
        self._closed = False

    @property
    def budget_bytes(self) -> int:
        """Bytes that may be locked."""
        return self._budget

    @property
    def held(self) -> dict[str, int]:
        """The locked bytes of each model, in the order in which they will be dropped."""
        return {model: pages.nbytes for model, pages in self._held.items()}

    async def keep(self, model: str, folder: Path) -> str:
        """Locks the weights in *folder*, dropping the models that were kept longest to make room.

        Returns "" when all of them are held, else one line that says why none is. Pages that left
        the page cache are read from disk chunk by chunk; cancelling, or :meth:`drop`, takes effect
        after the current chunk. Files that were replaced since they were locked are locked anew.
        """
        order = _Order(model)
        self._orders.add(order)
        try:
            async with self._turn:
                await self._keep(order, folder)
        except (FleetError, PagesError) as error:
            self._let_go(
                model
            )  # held pages are of older files, not of those that a load would read
            return str(error)
        finally:
            self._orders.discard(order)
        return ""

    def touch(self, model: str) -> None:
        """Makes a held model the last one to be dropped."""
        if model in self._held:
            self._held[model] = self._held.pop(model)

    def drop(self, model: str) -> None:
        """Unlocks the pages of *model*, or stops locking them. Ignores unknown names.

        The bytes are unlocked a moment later, and before any others are locked.
        """
        for order in self._orders:
            if order.model == model:
                order.wanted = False
        self._let_go(model)

    async def close(self) -> None:
        """Unlocks everything, for good."""
        self._closed = True
        for model in {*self._held, *(order.model for order in self._orders)}:
            self.drop(model)
        async with self._turn:
            await asyncio.to_thread(self._thread.shutdown)

    async def _keep(self, order: _Order, folder: Path) -> None:
        if self._closed:
            raise PagesError("the warm tier is closed")
        pages = LockedPages()
        try:
            files = await self._in_thread(sources.weight_files, folder)
            await self._in_thread(pages.map, files)
            known = self._held.get(order.model)
            if known and known.versions == pages.versions:
                self.touch(order.model)
            else:
                self._let_go(order.model)
                await self._lock_all(order, pages)
                self._held[order.model] = pages
        finally:
            if self._held.get(order.model) is not pages:
                self._thread.submit(pages.close)

    async def _lock_all(self, order: _Order, pages: LockedPages) -> None:
        order.check()
        self._make_room(order.model, pages.nbytes)
        for piece in pages.pieces():
            await self._in_thread(self._lock, pages, piece)
            order.check()

    def _make_room(self, model: str, nbytes: int) -> None:
        if nbytes > self._budget:
            raise PagesError(
                f"its weights take {size_text(nbytes)}, but host_cache_mb allows "
                f"{size_text(self._budget)} for all models"
            )
        while sum(self.held.values()) + nbytes > self._budget:
            oldest = next(iter(self._held))
            log.info("dropping %s from host memory to make room for %s", oldest, model)
            self._let_go(oldest)

    def _let_go(self, model: str) -> None:
        if pages := self._held.pop(model, None):
            self._thread.submit(pages.close)

    def _lock(self, pages: LockedPages, piece: ByteRange) -> None:
        """Locks one chunk; runs in the thread."""
        free = self._host.memory_free_bytes()
        if free - piece.nbytes < self._left_free:
            raise PagesError(
                f"the host has only {size_text(free)} of free memory, of which "
                f"{size_text(self._left_free)} must stay free"
            )
        pages.lock(piece)

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*arguments, **named))
