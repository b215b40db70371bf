"""The residents of this node, and the orders that change which there are.

Owns the registry of residents and the tasks that keep them, and takes orders: load, unload, pull,
recycle. There is one load at a time for each model. Orders of a placer that has been succeeded are
refused. How a model gets its memory is decided in ``Reservations``, how it is loaded and served in
``Resident``; neither knows the manager.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple, NoReturn

from neuron.files import sources
from neuron.files.warm_tier import WarmTier
from neuron.service.residents.offers import Folders, Offers
from neuron.service.residents.reservations import Meter, Reservations
from neuron.service.residents.resident import Resident, ResidentContext
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelState, Progress
from protocol.leader import Epoch
from protocol.orders import LoadOrder, PullOrder, RecycleOrder, UnloadOrder, Victim
from protocol.runtime.malloc import give_back_memory
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("neuron")

LOOK_SECONDS = 1.0
"""Time between two looks at whether folders have come, gone or changed."""
REFRESH_SECONDS = 30.0
"""Time between two looks at everything that may be offered, the Hub's cache included."""
CATALOGUE_SECONDS = 2.0
"""How long default models wait for their profiles."""
PULL_AGAIN_SECONDS = 60.0
"""How long a model whose download failed is shown as failed before it can be pulled again."""
BUSY_RETRY_SECONDS = 2
EPOCH_SECONDS = 3.0
"""How long an epoch counts after it was last confirmed; a placer confirms its own twice a second,
and a lease has ended long before."""


class _Residence(NamedTuple):
    """A resident and the task that keeps it."""

    resident: Resident
    task: asyncio.Task[None]


class ResidentManager:
    """Keeps the registry of this node's residents and takes orders."""

    def __init__(
        self, context: ResidentContext, offers: Offers, meter: Meter, warm: WarmTier
    ) -> None:
        """*warm* keeps the weights of models that have been unloaded."""
        self._node = context.identity.node
        self._context = context
        self._offers = offers
        self._records = context.records
        self._warm = warm
        self.reservations = Reservations(self._node, offers, meter, warm, self._evict)
        """The memory of all residents."""
        self._residences: dict[str, _Residence] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._refresh_wanted = asyncio.Event()
        self._newest: Epoch | None = None
        self._newest_at = float("-inf")
        self._tasks = asyncio.TaskGroup()
        self._is_running = False
        self.is_draining = False

    def __iter__(self) -> Iterator[Resident]:
        return iter([residence.resident for residence in self._residences.values()])

    async def run(self, default_models: tuple[str, ...], catalogue_read: asyncio.Event) -> None:
        """Loads *default_models* by their profiles and looks around for others, until cancelled. A
        catalogue that cannot be read delays the defaults by :data:`CATALOGUE_SECONDS` at most."""
        async with self._tasks:
            self._is_running = True
            try:
                await wait_at_most(catalogue_read, CATALOGUE_SECONDS)
                for source in default_models:
                    model = sources.model_id(source)
                    self._offers.add(model, source, None)
                    order = LoadOrder(model, why="a default model of the node")
                    self._begin(order, is_kept=True)
                await self._keep_offers()
            finally:
                self._is_running = False  # nothing more is to be begun

    async def _keep_offers(self) -> NoReturn:
        while True:
            self._refresh_wanted.clear()
            seen = await asyncio.to_thread(self._offers.folders)
            await self._offers.refresh([*self._residences, *self._pulls])
            self._show_offers()
            await self._until_it_may_have_changed(seen)

    async def _until_it_may_have_changed(self, seen: Folders) -> None:
        """Returns when the folders are others than *seen* and have stopped changing, as large files
        take minutes to copy; at the latest after :data:`REFRESH_SECONDS`."""
        ends, last = time.monotonic() + REFRESH_SECONDS, seen
        while not self._refresh_wanted.is_set() and time.monotonic() < ends:
            await wait_at_most(self._refresh_wanted, LOOK_SECONDS)
            now = await asyncio.to_thread(self._offers.folders)
            if now != seen and now == last:
                return
            last = now

    def refresh_offers(self) -> None:
        """Looks around at once, because the catalogue, or what there is, has changed."""
        self._refresh_wanted.set()

    async def drain(self, seconds: float) -> None:
        """Lets running answers finish for at most *seconds*, because the node is stopping."""
        self.is_draining = True
        await asyncio.gather(*(resident.drain(seconds) for resident in self))

    # -- orders --------------------------------------------------------------------------------

    def load(self, order: LoadOrder) -> None:
        """Begins to load a model; does nothing when it is loaded or on its way. Raises
        ``FleetError`` for one that has no usable name, or that is just being unloaded."""
        self._check(order.epoch, order.model)
        residence = self._residences.get(order.model)
        if residence is not None and residence.resident.record.state is not ModelState.FAILED:
            return
        self._offers.add(order.model, order.source, order.profile)
        if residence is not None:
            residence.task.cancel()  # it would have waited before another try
            self._ended(residence.resident)
        if order.epoch is None:
            self._offers.forget_failures(order.model)  # an operator knows why
        if pull := self._pulls.pop(order.model, None):
            pull.cancel()  # the load goes on with the download
        log.info("told to load %s: %s", order.model, order.why or "by an operator")
        self._begin(order, is_kept=False)

    def unload(self, order: UnloadOrder) -> None:
        """Begins to unload a model. Raises ``FleetError`` for one that is not here."""
        self._check(order.epoch, "", may_leave=True)
        if order.model not in self._residences:
            known = ", ".join(self._residences) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{self._node} has no model {order.model!r}. It has: {known}.",
                param="model",
            )
        log.info("told to unload %s: %s", order.model, order.why or "by an operator")
        self._take_down(order.model, order.drain_seconds)

    def pull(self, order: PullOrder) -> None:
        """Begins to fetch a model's files; does nothing when it is loaded, or being fetched."""
        self._check(order.epoch, order.model)
        if order.model not in self._residences and order.model not in self._pulls:
            self._offers.add(order.model, order.source, order.profile)
            fetching = self._fetch(order.model)
            self._pulls[order.model] = self._spawn(fetching, f"pull {order.model}")

    def recycle(self, order: RecycleOrder) -> None:
        """Replaces a model's engine by a new one. Raises ``FleetError`` when it is in use, or not
        here."""
        self._check(order.epoch, order.model)
        if order.model not in self._residences:
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND, f"{self._node} has no model {order.model!r}."
            )
        self._residences[order.model].resident.recycle(order.loads)

    def note_epoch(self, epoch: Epoch) -> None:
        """Notes that a gateway places in *epoch*: orders of earlier placers are void, for as long
        as its heartbeats confirm it. An epoch that nobody has confirmed for
        :data:`EPOCH_SECONDS` was no placer's, or is that of a bus that is gone."""
        now = time.monotonic()
        is_forgotten = now - self._newest_at > EPOCH_SECONDS
        if self._newest is None or self._newest <= epoch or is_forgotten:
            self._newest, self._newest_at = epoch, now

    def _check(self, epoch: Epoch | None, model: str, *, may_leave: bool = False) -> None:
        if epoch is not None:
            self.note_epoch(epoch)
            if self._newest is not None and epoch < self._newest:
                raise FleetError(
                    ErrorCode.MODEL_UNAVAILABLE,
                    f"The order is of epoch {epoch.revision}, and {self._node} has heard of epoch "
                    f"{self._newest.revision}: another gateway places now.",
                )
        if not may_leave and (self.is_draining or model in self._leaving):
            what = "the node drains" if self.is_draining else f"{model} is being unloaded"
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{self._node} does not load {model} now: {what}. Try again shortly.",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )

    # -- residences ----------------------------------------------------------------------------

    def _begin(self, order: LoadOrder, *, is_kept: bool) -> None:
        offer = self._offers.get(order.model)
        assert offer is not None, "it was added"
        failures = self._offers.failures(order.model)
        resident = Resident(
            offer, order, self._context, self.reservations, is_kept=is_kept, failures=failures
        )
        task = self._spawn(resident.run(), f"model {resident.id}")
        self._residences[resident.id] = _Residence(resident, task)
        self._warm.touch(resident.id)
        task.add_done_callback(lambda task: self._ended(resident))

    def _ended(self, resident: Resident) -> None:
        """Strikes a resident whose process is gone, if it ever had one, from the registry; once."""
        if resident.has_ended:
            return
        resident.has_ended = True
        residence = self._residences.get(resident.id)
        if resident.has_new_files:
            self._offers.forget_failures(resident.id)
        elif resident.record.state is ModelState.FAILED:
            self._offers.record_failure(resident.id, resident.broken)
        if residence is not None and residence.resident is resident:
            del self._residences[resident.id]
            self._show_offer(resident.id)
            if self._is_running:
                self._spawn(self._look_after(resident.offer.source), "look after a folder")
            if resident.was_loaded and self._warm.budget_bytes and self._is_running:
                self._spawn(self._keep_warm(resident.id), f"keep {resident.id} warm")

    async def _look_after(self, source: str) -> None:
        """Looks around at once if the folder of a model that has just been unloaded is gone."""
        if await asyncio.to_thread(sources.is_gone, source):
            self.refresh_offers()

    async def _keep_warm(self, model: str) -> None:
        """Locks the weights of a model that was unloaded: its pages are mostly in the page cache
        still, and the next load would push them out."""
        offer = self._offers.get(model)
        if offer is None:
            return
        try:
            folder = await asyncio.to_thread(sources.local_folder, offer.source)
        except FleetError as gone:
            log.warning("%s is not kept in host memory: %s", model, gone)
            return
        if folder is not None and model not in self._residences:
            if why := await self._warm.keep(model, folder):
                log.warning("%s is not kept in host memory: %s", model, why)
            self._show_offers()

    def _take_down(self, model: str, drain_seconds: float) -> asyncio.Task[None]:
        """Begins to unload a resident, once; 0 = its answers may take as long as they need."""
        if model not in self._leaving:
            leaving = self._unload(self._residences[model], drain_seconds or None)
            self._leaving[model] = self._spawn(leaving, f"unload {model}")
        return self._leaving[model]

    async def _unload(self, residence: _Residence, drain_seconds: float | None) -> None:
        resident = residence.resident
        try:
            await resident.drain(drain_seconds)
            residence.task.cancel()
            await asyncio.wait([residence.task])
        finally:
            del self._leaving[resident.id]
        self._ended(resident)
        log.info("%s is unloaded", resident.id)
        await asyncio.to_thread(give_back_memory)

    async def _evict(self, victim: Victim, successor: str) -> None:
        """Unloads a victim for *successor*; it goes on leaving when nobody waits for it any
        more."""
        if victim.model in self._residences:
            log.info("%s goes for %s", victim.model, successor)
            await asyncio.wait([self._take_down(victim.model, victim.drain_seconds)])

    # -- files ---------------------------------------------------------------------------------

    async def _fetch(self, model: str) -> None:
        offer = self._offers.get(model)
        assert offer is not None, "it was added"

        def on_progress(done: int, total: int) -> None:
            progress = Progress("downloading", done, total)
            self._records.offer(offer, ModelState.FETCHING, progress=progress)

        try:
            on_progress(0, 0)
            await sources.resolve(offer.source, on_progress)
            self._offers.forget_failures(model)
            await self._offers.appraise(model)
        except FleetError as failure:
            log.error("%s: %s", model, failure)
            error = WireError(failure.error.code, str(failure))
            self._records.offer(
                offer, ModelState.FAILED, error=error, retry_seconds=PULL_AGAIN_SECONDS
            )
            await asyncio.sleep(PULL_AGAIN_SECONDS)
        finally:
            if self._pulls.get(model) is asyncio.current_task():
                del self._pulls[model]
                self._show_offer(model)

    # -- what is shown -------------------------------------------------------------------------

    def _show_offers(self) -> None:
        known = {offer.model for offer in self._offers}
        for model in known:
            self._show_offer(model)
        self._records.keep_only(known | set(self._residences) | set(self._pulls))

    def _show_offer(self, model: str) -> None:
        offer = self._offers.get(model)
        if offer is not None and model not in self._residences and model not in self._pulls:
            is_broken = self._offers.is_broken(model)
            self._records.offer(offer, ModelState.ABSENT, failed_before=is_broken)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=name)
