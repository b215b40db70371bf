"""One model's residence on this node: fetching → loading → ready → draining, or failed.

Every state ends by itself. A load that failed gives everything back, and is tried again after a
pause that grows if the node must always have the model; an engine that died is replaced. Each
change is one KV record that everybody sees.

Takes its memory from ``Reservations`` and writes its records itself; must not know the manager.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from neuron.config import NeuronConfig
from neuron.engine_process.client import EngineLoadError
from neuron.files import sources
from neuron.files.kernel_findings import KernelFindings
from neuron.ipc.messages import Loading, Ready, Start
from neuron.models.errors import LoadCode
from neuron.service.engine_protocol import Engine, PrepareEngine, StartEngine
from neuron.service.identity import Identity
from neuron.service.jobs.worker import ServedModel, Worker, WorkerContext
from neuron.service.residents.forecast import LoadForecast
from neuron.service.residents.head_start import HeadStart
from neuron.service.residents.offers import Offer
from neuron.service.residents.pauses import Pauses
from neuron.service.residents.records import RecordWriter
from neuron.service.residents.reservations import (
    NO_ROOM_SECONDS,
    NoRoom,
    Reservation,
    Reservations,
)
from neuron.service.texts.model_texts import ModelTexts
from neuron.service.texts.shelf import Shelf
from neuron.sizing.model_settings import ModelSettings
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelLoad, ModelRecord, ModelState, Progress
from protocol.orders import LoadOrder

log = logging.getLogger("model")

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_HOPELESS_PAUSE_SECONDS = 60.0
"""For a folder that is damaged or unsupported: somebody has to change it first, which is noticed.
Each further failure doubles it, as every try may cost a model that works its place."""
_LONGEST_HOPELESS_PAUSE_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
"""Time between two looks at the files of a model that could not be loaded."""
_LOAD_TRIES = 3
"""A process that dies in its load says little about the model: before requests that wait for it
fail, there is another one."""
_DONE_ONCE = ("kernels", "padding")
"""Stages of a load whose results later loads take over."""
_DIED = (LoadCode.CRASHED, LoadCode.TIMEOUT)
_TEMPORARY = (*_DIED, LoadCode.OUT_OF_MEMORY)


def _is_the_models_fault(failure: FleetError | EngineLoadError) -> bool:
    """Whether another try would fail as well, unless somebody changes something."""
    if isinstance(failure, EngineLoadError):
        return failure.code in (LoadCode.CORRUPT, LoadCode.UNSUPPORTED)
    return failure.error.code is not ErrorCode.MODEL_UNAVAILABLE


class ResidentContext(NamedTuple):
    """What all residents of a node share."""

    config: NeuronConfig
    workers: WorkerContext
    records: RecordWriter
    start_engine: StartEngine
    findings: KernelFindings
    shelf: Shelf
    prepare_engine: PrepareEngine | None = None

    @property
    def identity(self) -> Identity:
        """Who the node is on the bus."""
        return self.workers.identity


class Resident:
    """One model that this node serves, or is about to."""

    def __init__(
        self,
        offer: Offer,
        order: LoadOrder,
        context: ResidentContext,
        reservations: Reservations,
        *,
        is_kept: bool,
        failures: int,
    ) -> None:
        """*is_kept*: a load that failed is tried again. *failures*: how many loads of this model
        have failed one after the other before this one."""
        self.id = offer.model
        self.offer = offer
        self._order = order
        self._context = context
        self._reservations = reservations
        self._is_kept = is_kept
        self._pauses = Pauses(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, failures)
        self._hopeless = Pauses(_HOPELESS_PAUSE_SECONDS, _LONGEST_HOPELESS_PAUSE_SECONDS, failures)
        self._load_seconds = offer.load_seconds
        self._expected_seconds = offer.expected_seconds
        self._forecast = LoadForecast(0.0)
        self._loads = 0
        self._recycling = False
        self.was_loaded = False
        """Whether its weights have been read."""
        self.has_ended = False
        """Whether the manager knows that it has."""
        self.broken: sources.FileStamps | None = None
        """Its files, if its last load showed that they do not work."""
        self.has_new_files = False
        """Whether its files have changed since its load failed."""
        self._reservation: Reservation | None = None
        self._worker: Worker | None = None
        self._engine: Engine | None = None
        self._revision = ""
        self.record = self._new_record(ModelState.LOADING)

    @property
    def worker(self) -> Worker | None:
        """The running worker while the model is ready or draining."""
        return self._worker

    @property
    def load(self) -> ModelLoad | None:
        """How busy it is, for the heartbeat; None while it is not ready."""
        return self._worker.load if self._worker else None

    async def run(self) -> None:
        """Keeps the model served until cancelled; returns when it cannot be loaded, after a pause
        in which nobody needs to try."""
        while True:
            files = await asyncio.to_thread(sources.file_stamps, self.offer.source)
            self.broken = None
            try:
                await self._serve()
            except NoRoom as full:
                if not self._is_kept and not full.is_shown:
                    log.warning("%s: %s", self.id, full)
                    return
                pause = NO_ROOM_SECONDS
                self._fail(str(full), pause)
            except (FleetError, EngineLoadError) as failure:
                temporary = isinstance(failure, EngineLoadError) and failure.code in _TEMPORARY
                self.broken = files if _is_the_models_fault(failure) else None
                pause = (self._pauses if temporary else self._hopeless).next()
                self._fail(str(failure), pause)
            except Exception as bug:
                log.exception("model %s", self.id)
                pause = self._hopeless.next()
                self._fail(f"{type(bug).__name__}: {bug}", pause)
            await self._pause(pause, files)
            if not self._is_kept:
                return

    async def _pause(self, seconds: float, files: sources.FileStamps) -> None:
        """Waits before another try; no longer once the files are others than *files*, with which
        the load failed, and have stopped changing."""
        ends, last = time.monotonic() + seconds, files
        while (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))
            now = await asyncio.to_thread(sources.file_stamps, self.offer.source)
            if now != files and now == last:
                log.info("%s: its files have changed", self.id)
                self.has_new_files = True
                self._pauses.reset()
                self._hopeless.reset()
                return
            last = now

    async def drain(self, seconds: float | None) -> None:
        """Takes no more jobs, and lets running answers finish for at most *seconds* (None: for as
        long as they take)."""
        if self._worker:
            self._show(self._new_record(ModelState.DRAINING))
            await self._worker.drain(seconds)

    def recycle(self, loads: int) -> None:
        """Replaces the engine by another one, unless somebody uses it. *loads*: the number of the
        node's loads for which this is due; the next time is counted from it. Raises ``FleetError``
        when the engine is in use or not ready."""
        worker, engine = self._worker, self._engine
        if worker is None or engine is None or not worker.stop_taking():
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"{self.id} is in use, or not ready: its engine is not started anew now.",
                retry_after_seconds=1,
            )
        log.info("%s: its engine is started anew", self.id)
        self._recycling = True
        self._loads = loads or self._loads
        self._show(
            self._new_record(ModelState.LOADING, progress=Progress("recycling", 0, 1, "steps"))
        )
        worker.end()

    async def _serve(self) -> NoReturn:
        """Gets the files, the memory, and an engine; another engine whenever one has died."""
        self._show(
            self._new_record(ModelState.LOADING, progress=Progress("resolving", 0, 1, "steps"))
        )
        folder = await sources.resolve(self.offer.source, self._on_fetch)
        async with self._context.shelf.use(folder, self.offer.profile.tool_calls) as texts:
            self._revision = await asyncio.to_thread(sources.revision_digest, folder)
            await self._serve_with_texts(folder, texts)

    async def _serve_with_texts(self, folder: Path, texts: ModelTexts) -> NoReturn:
        is_alone = self.offer.profile.min_devices == 1
        prepare = self._context.prepare_engine if is_alone else None
        async with (
            HeadStart(prepare, str(folder)) as head_start,
            self._reservations.reserve(self._order, self._on_eviction) as reservation,
        ):
            self._reservation = reservation
            try:
                self._loads = reservation.load_number
                while True:
                    began = time.monotonic()
                    reason = await self._serve_once(folder, texts, reservation, head_start)
                    if self._recycling:
                        self._recycling = False
                        continue
                    if time.monotonic() - began > _LONGEST_PAUSE_SECONDS:
                        self._pauses.reset()
                    self._restarting(reason)
                    await asyncio.sleep(self._pauses.next())
            finally:
                self._reservation = None

    async def _serve_once(
        self, folder: Path, texts: ModelTexts, reservation: Reservation, head_start: HeadStart
    ) -> str:
        """Loads and serves until the engine has died; returns why it did."""
        self._forecast = LoadForecast(self._expected_seconds)
        try:
            engine = await self._load(self._start_message(folder, reservation), head_start)
        except BaseException:
            reservation.pids = ()
            raise
        self._engine = engine
        reservation.pids = engine.pids
        self.was_loaded = True
        took = self._forecast.elapsed
        once = sum(engine.ready.stage_seconds.get(stage, 0.0) for stage in _DONE_ONCE)
        self._load_seconds, self._expected_seconds = round(took, 2), round(took - once, 2)
        self._reservations.loaded(self.id, self._load_seconds, self._expected_seconds)
        try:
            await asyncio.to_thread(self._context.findings.learn, engine.ready.findings)
            await self._serve_with(engine, texts)
        finally:
            self._engine = None
            reservation.pids = ()
            await engine.stop()
        return engine.died.result()

    def _start_message(self, folder: Path, reservation: Reservation) -> Start:
        """The engine's first message."""
        settings = ModelSettings.resolve(self.offer.profile, self._context.config)
        ranks = reservation.ranks
        return Start(
            model_dir=str(folder),
            device=ranks[0],
            devices=ranks if len(ranks) > 1 else (),
            dtype=settings.dtype,
            exact=settings.exact,
            max_running=settings.slots,
            max_context=settings.max_context,
            kv_cache_bytes=reservation.kv_bytes,
            threads=settings.threads,
            findings=self._context.findings.known(),
        )

    async def _load(self, start: Start, head_start: HeadStart) -> Engine:
        """Raises ``EngineLoadError`` when it cannot be loaded, or has died in every try."""
        for left in reversed(range(_LOAD_TRIES)):
            try:
                # A prepared process is one; the model may need several by now.
                prepared = None if start.devices else await head_start.take()
                begin = prepared.start if prepared is not None else self._context.start_engine
                return await begin(start, on_progress=self._on_load)
            except EngineLoadError as failure:
                if failure.code not in _DIED or not left:
                    raise
                self._restarting(str(failure))
            await asyncio.sleep(self._pauses.next())
        raise AssertionError("the last try ends it")

    async def _serve_with(self, engine: Engine, texts: ModelTexts) -> None:
        model = ServedModel(self.id, texts, self._revision)
        self._worker = Worker(model, engine, self._context.workers)
        self._show(self._ready_record(engine.ready))
        self._context.workers.beat()
        try:
            await self._worker.run()
        finally:
            self._worker = None

    # -- records -------------------------------------------------------------------------------

    def _on_eviction(self, done: int, total: int) -> None:
        progress = Progress("making room", done, total, "models")
        self._show(self._new_record(ModelState.LOADING, progress=progress))

    def _on_fetch(self, done: int, total: int) -> None:
        self._show(
            self._new_record(ModelState.FETCHING, progress=Progress("downloading", done, total))
        )

    def _on_load(self, loading: Loading) -> None:
        if self._reservation is not None:
            self._reservation.pids = loading.pids  # what they take is this model's from now on
        done, total = loading.done_bytes, loading.total_bytes
        left = self._forecast.left(done, total)
        progress = Progress(str(loading.stage), done, total, seconds_left=left)
        self._show(self._new_record(ModelState.LOADING, progress=progress))

    def _ready_record(self, ready: Ready) -> ModelRecord:
        log.info(
            "%s is ready: %s, context %d, %d slots, loaded in %.2f s (%s); KV cache %s; "
            "numerics %s",
            self.id,
            ready.dtype,
            ready.context_limit,
            ready.max_running,
            ready.load_seconds,
            ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in ready.stage_seconds.items()),
            ready.kv_cache_why,
            ready.numerics,
        )
        for note in ready.notes:
            log.warning("%s: %s", self.id, note)
        return msgspec.structs.replace(
            self._new_record(ModelState.READY),
            context_limit=ready.context_limit,
            slots=ready.max_running,
            memory_bytes=ready.weight_bytes + ready.kv_cache_bytes,
            numerics=ready.numerics,
        )

    def _restarting(self, reason: str) -> None:
        """Shows that requests may wait, because the engine comes back."""
        log.error("the engine of %s ended: %s", self.id, reason)
        error = WireError(ErrorCode.ENGINE_FAILED, f"Its engine ended: {reason}")
        progress = Progress("restarting", 0, 1, "steps")
        self._show(self._new_record(ModelState.LOADING, progress=progress, error=error))

    def _fail(self, why: str, retry_seconds: float) -> None:
        log.error("%s: %s", self.id, why)
        error = WireError(ErrorCode.MODEL_UNAVAILABLE, why)
        self._show(self._new_record(ModelState.FAILED, error=error, retry_seconds=retry_seconds))

    def _new_record(
        self,
        state: ModelState,
        *,
        progress: Progress | None = None,
        error: WireError | None = None,
        retry_seconds: float = 0.0,
    ) -> ModelRecord:
        reservation = self._reservation
        return ModelRecord(
            node=self._context.identity.node,
            instance=self._context.identity.instance,
            model=self.id,
            state=state,
            progress=progress,
            error=error,
            retry_seconds=retry_seconds,
            revision=self._revision,
            has_files=self.offer.has_files or self._revision != "",
            estimate=reservation.estimate if reservation else self.offer.estimate,
            devices=reservation.devices if reservation else (),
            reserved_bytes=reservation.estimate.bytes_each if reservation else 0,
            load_seconds=self._load_seconds,
            why=self._order.why,
            loads=self._loads,
            asked_for=self._order.epoch is None,
        )

    def _show(self, record: ModelRecord) -> None:
        self.record = record
        self._context.records.show(record)
