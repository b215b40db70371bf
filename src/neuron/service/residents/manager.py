"""The models of this node: what is loaded, what could be, and the orders that change it.

One load at a time for each model. Memory is reserved before a load begins and released when its
process is gone. What an order names as victims goes one by one, and only until what is measured is
enough. Orders of a placer that has been succeeded are refused.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, NamedTuple, NoReturn, Protocol

from neuron.files import sources
from neuron.files.warm_tier import WarmTier
from neuron.service.residents.offers import Offer, Offers
from neuron.service.residents.records import RecordWriter
from neuron.service.residents.resident import Hold, NoRoom, Reserve, Resident
from neuron.sizing.ledger import Ledger
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import Estimate, ModelState, Progress
from protocol.leader import Epoch
from protocol.orders import LoadOrder, PullOrder, RecycleOrder, UnloadOrder
from protocol.runtime.sizes import size_text
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("neuron")

LOOK_SECONDS = 30.0
"""Between two looks at the folders with models."""
CATALOGUE_SECONDS = 2.0
"""How long default models wait for their profiles."""
PULL_AGAIN_SECONDS = 60.0
"""After a download that failed."""
BUSY_RETRY_SECONDS = 2


class MakeResident(Protocol):
    """Everything that a model needs of its node but what is its own."""

    def __call__(
        self,
        offer: Offer,
        *,
        reserve: Reserve,
        why: str,
        is_kept: bool,
        failures: int,
        begins: Callable[[], int],
        took: Callable[[float], None],
    ) -> Resident:
        """A model that has not begun."""
        ...


class _Residence(NamedTuple):
    """A model and the task that keeps it."""

    model: Resident
    task: asyncio.Task[None]


class ResidentManager:
    """All of them. *measure* tells the ledger what others take now."""

    def __init__(
        self,
        node: str,
        *,
        ledger: Ledger,
        offers: Offers,
        shown: RecordWriter,
        make_model: MakeResident,
        measure: Callable[[], Awaitable[None]],
        warm: WarmTier,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._offers = offers
        self._shown = shown
        self._make_model = make_model
        self._measure = measure
        self._warm = warm
        self._stays: dict[str, _Residence] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Lock()
        self._look_wanted = asyncio.Event()
        self._newest: Epoch | None = None
        self._tasks = asyncio.TaskGroup()
        self._is_running = False
        self._failures: Counter[str] = Counter()
        self.is_draining = False
        self.loads = 0
        """How many have begun since the node started."""

    def __iter__(self) -> Iterator[Resident]:
        return iter([stay.model for stay in self._stays.values()])

    async def run(self, default_models: tuple[str, ...], catalogue_read: asyncio.Event) -> None:
        """Until cancelled. Loads *default_models*, by their profiles, and looks around for others;
        a catalogue that cannot be read holds them up for a moment only."""
        async with self._tasks:
            self._is_running = True
            try:
                await wait_at_most(catalogue_read, CATALOGUE_SECONDS)
                for source in default_models:
                    model = sources.model_id(source)
                    self._offers.add(model, source, None)
                    order = LoadOrder(model, why="a default model of the node")
                    self._begin(order, is_kept=True)
                await self._look_around()
            finally:
                self._is_running = False  # nothing more is to be begun

    async def _look_around(self) -> NoReturn:
        while True:
            self._look_wanted.clear()
            await self._offers.look([*self._stays, *self._pulls])
            self._show_offers()
            await wait_at_most(self._look_wanted, LOOK_SECONDS)

    def look_again(self) -> None:
        """The catalogue has changed."""
        self._look_wanted.set()

    async def drain(self, seconds: float) -> None:
        """The node is stopping: running answers may finish, for so long."""
        self.is_draining = True
        await asyncio.gather(*(model.drain(seconds) for model in self))

    # -- orders --------------------------------------------------------------------------------

    def load(self, order: LoadOrder) -> None:
        """Begins to load a model; nothing new when it is there or on its way. Raises ``FleetError``
        for one that has no usable name, or that is just being unloaded."""
        self._check(order.epoch, order.model)
        stay = self._stays.get(order.model)
        if stay is not None and stay.model.record.state is not ModelState.FAILED:
            return
        self._offers.add(order.model, order.source, order.profile)
        if stay is not None:
            stay.task.cancel()  # it would have waited before another try
        if pull := self._pulls.pop(order.model, None):
            pull.cancel()  # the load goes on with the download
        log.info("told to load %s: %s", order.model, order.why or "by an operator")
        self._begin(order, is_kept=False)

    def unload(self, order: UnloadOrder) -> None:
        """Begins to unload a model. Raises ``FleetError`` for one that is not here."""
        self._check(order.epoch, "", may_leave=True)
        if order.model not in self._stays:
            have = ", ".join(self._stays) or "none"
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{self._node} has no model {order.model!r}. It has: {have}.",
                param="model",
            )
        log.info("told to unload %s: %s", order.model, order.why or "by an operator")
        self._take_down(order.model, order.drain_seconds or None)

    def pull(self, order: PullOrder) -> None:
        """Begins to fetch a model's files; nothing new when they are here, or on their way."""
        self._check(order.epoch, order.model)
        if order.model not in self._stays and order.model not in self._pulls:
            self._offers.add(order.model, order.source, order.profile)
            fetching = self._fetch(order.model)
            self._pulls[order.model] = self._spawn(fetching, f"pull {order.model}")

    def recycle(self, order: RecycleOrder) -> None:
        """Starts a model's engine anew. Raises ``FleetError`` when it is in use or not here."""
        self._check(order.epoch, order.model)
        if order.model not in self._stays:
            raise FleetError(
                ErrorCode.MODEL_NOT_FOUND, f"{self._node} has no model {order.model!r}."
            )
        self._stays[order.model].model.recycle(order.loads)

    def heard_of(self, epoch: Epoch) -> None:
        """A gateway places: earlier placers' orders are void."""
        if self._newest is None or self._newest < epoch:
            self._newest = epoch

    def _check(self, epoch: Epoch | None, model: str, *, may_leave: bool = False) -> None:
        if epoch is not None:
            if self._newest is not None and epoch < self._newest:
                raise FleetError(
                    ErrorCode.MODEL_UNAVAILABLE,
                    f"The order is of epoch {epoch.revision}, and {self._node} has heard of epoch "
                    f"{self._newest.revision}: another gateway places now.",
                )
            self.heard_of(epoch)
        if not may_leave and (self.is_draining or model in self._leaving):
            what = "the node drains" if self.is_draining else f"{model} is being unloaded"
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{self._node} does not load {model} now: {what}. Try again shortly.",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )

    # -- a stay --------------------------------------------------------------------------------

    def _begin(self, order: LoadOrder, *, is_kept: bool) -> None:
        offer = self._offers.get(order.model)
        assert offer is not None, "it was added"
        model = self._make_model(
            offer,
            reserve=lambda model: self._reserve(model, order),
            why=order.why,
            is_kept=is_kept,
            failures=self._failures[order.model],
            begins=self._count_load,
            took=lambda seconds: self._took(order.model, seconds),
        )
        task = self._spawn(model.run(), f"model {model.id}")
        self._stays[model.id] = _Residence(model, task)
        self._warm.touch(model.id)
        task.add_done_callback(lambda task: self._ended(model))

    def _ended(self, model: Resident) -> None:
        """Its process is gone, if it ever had one."""
        stay = self._stays.get(model.id)
        if model.record.state is ModelState.FAILED:
            self._failures[model.id] += 1
        if stay is not None and stay.model is model:
            del self._stays[model.id]
            self._show_offer(model.id)
            if model.was_loaded and self._warm.budget_bytes and self._is_running:
                self._spawn(self._keep_warm(model.id), f"keep {model.id} warm")

    async def _keep_warm(self, model: str) -> None:
        """Its pages are mostly in the page cache still; the next load would push them out."""
        offer = self._offers.get(model)
        if offer is None:
            return
        try:
            folder = await asyncio.to_thread(sources.local_folder, offer.source)
        except FleetError as gone:
            log.warning("%s is not kept in host memory: %s", model, gone)
            return
        if folder is not None and model not in self._stays:
            if why := await self._warm.keep(model, folder):
                log.warning("%s is not kept in host memory: %s", model, why)
            self._show_offers()

    def _count_load(self) -> int:
        self.loads += 1
        return self.loads

    def _took(self, model: str, seconds: float) -> None:
        del self._failures[model]
        self._offers.took(model, seconds)
        self._warm.drop(model)

    def _take_down(self, model: str, seconds: float | None) -> asyncio.Task[None]:
        if model not in self._leaving:
            stay = self._stays[model]
            leaving = self._spawn(self._unload(stay, seconds), f"unload {model}")
            self._leaving[model] = leaving
        return self._leaving[model]

    async def _unload(self, stay: _Residence, seconds: float | None) -> None:
        model = stay.model
        try:
            await model.drain(seconds)
            stay.task.cancel()
            await asyncio.wait([stay.task])
        finally:
            del self._leaving[model.id]
        self._ended(model)
        log.info("%s is unloaded", model.id)

    # -- memory --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _reserve(self, model: Resident, order: LoadOrder) -> AsyncIterator[Hold]:
        async with self._room:
            offer = await self._offers.appraise(model.id)
            if offer.error is not None:
                raise FleetError.of(offer.error)
            assert offer.estimate is not None, "its files are here"
            devices = await self._make_room(model, order, offer.estimate)
            self._ledger.reserve(model.id, devices, offer.estimate.bytes_each)
        try:
            names = tuple(map(self._ledger.name, devices))
            each = offer.profile.min_devices // len(devices)  # ranks; more than one on a CPU
            yield Hold(devices, names * each, offer.estimate)
        finally:
            self._ledger.release(model.id)

    async def _make_room(
        self, model: Resident, order: LoadOrder, estimate: Estimate
    ) -> tuple[int, ...]:
        """The devices where it fits, after as many victims as that takes."""
        victims = [v for v in order.victims if v.model != model.id]
        total = len(victims)
        while True:
            await self._measure()
            if devices := self._devices(order, estimate):
                return devices
            if not victims:
                raise self._no_room(model.id, order, estimate)
            model.makes_room(total - len(victims), total)
            victim = victims.pop(0)
            if victim.model in self._stays:
                log.info("%s goes for %s", victim.model, model.id)
                leaving = self._take_down(victim.model, victim.drain_seconds or None)
                await asyncio.wait([leaving])

    def _devices(self, order: LoadOrder, estimate: Estimate) -> tuple[int, ...]:
        if len(order.devices) != estimate.devices:  # any, or meant for an older profile
            return self._ledger.choose(estimate.devices, estimate.bytes_each)
        fits = self._ledger.fits(order.devices, estimate.bytes_each)
        return order.devices if fits else ()

    def _no_room(self, model: str, order: LoadOrder, estimate: Estimate) -> NoRoom:
        room = self._ledger.most_room()
        held = ", ".join(
            f"{name} {size_text(held.bytes_each)}" for name, held in self._ledger.all_held().items()
        )
        return NoRoom(
            f"{model} takes {size_text(estimate.bytes_each)} on {self._node}, and "
            f"{size_text(room)} are free ({held or 'no model is loaded'}). Unload a model, or give "
            "models more memory (memory_mb).",
            is_shown=order.epoch is None,
        )

    # -- files ---------------------------------------------------------------------------------

    async def _fetch(self, model: str) -> None:
        offer = self._offers.get(model)
        assert offer is not None, "it was added"

        def on_progress(done: int, total: int) -> None:
            progress = Progress("downloading", done, total)
            self._shown.offer(offer, ModelState.FETCHING, progress=progress)

        try:
            on_progress(0, 0)
            await sources.resolve(offer.source, on_progress)
            await self._offers.appraise(model)
        except FleetError as failure:
            log.error("%s: %s", model, failure)
            error = WireError(failure.error.code, str(failure))
            self._shown.offer(
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
        self._shown.keep_only(known | set(self._stays) | set(self._pulls))

    def _show_offer(self, model: str) -> None:
        offer = self._offers.get(model)
        if offer is not None and model not in self._stays and model not in self._pulls:
            self._shown.offer(offer, ModelState.ABSENT)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=name)
