"""One model's stay on this node: fetching → loading → ready → draining, or failed.

Every state is left by itself. A failed load gives everything back, and is tried again after a
pause that grows if the node shall always have the model; an engine that died is replaced. Each
change is one KV record that everybody sees.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from neuron.engine_process.client import EngineLoadError
from neuron.files import sources
from neuron.ipc.messages import Loading, Ready, Start
from neuron.models.errors import LoadCode
from neuron.service.engine_protocol import Engine, StartEngine
from neuron.service.identity import Identity
from neuron.service.jobs.gateway_liveness import GatewayLiveness
from neuron.service.jobs.prompt import Prompter
from neuron.service.jobs.registry import Jobs
from neuron.service.jobs.worker import Worker
from neuron.service.residents.offers import Offer
from protocol.catalogue import Profile
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import Estimate, ModelLoad, ModelRecord, ModelState, Progress

log = logging.getLogger("model")

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_HOPELESS_PAUSE_SECONDS = 60.0
"""For a folder that is damaged or unsupported: somebody has to change it first."""
NO_ROOM_SECONDS = 3.0
_LOAD_TRIES = 3
"""A process that dies in its load says little about the model: before requests that wait for it
fail, there is another one."""
_DIED = (LoadCode.CRASHED, LoadCode.TIMEOUT)
_TEMPORARY = (*_DIED, LoadCode.OUT_OF_MEMORY)


class EngineSettings(NamedTuple):
    """How engines are started on this node, where a model's profile does not say."""

    dtype: str
    exact: bool | None
    slots: int
    max_context: int | None
    threads: int | None

    def start(self, folder: Path, profile: Profile, hold: "Hold") -> Start:
        """The engine's first message."""
        return Start(
            model_dir=str(folder),
            device=hold.ranks[0],
            devices=hold.ranks if len(hold.ranks) > 1 else (),
            dtype=self.dtype if profile.dtype == "auto" else profile.dtype,
            exact=self.exact,
            max_running=profile.slots or self.slots,
            max_context=profile.limit.context or self.max_context,
            kv_cache_bytes=hold.kv_bytes,
            threads=self.threads,
        )


class Hold(NamedTuple):
    """Memory that is reserved for a model."""

    devices: tuple[int, ...]
    """Positions in the node's list."""
    ranks: tuple[str, ...]
    """The device of each of the engine's processes, as engines name it; several can share a
    CPU."""
    estimate: Estimate

    @property
    def kv_bytes(self) -> int | None:
        """For each rank; None = the engine chooses."""
        return self.estimate.kv_bytes * len(self.devices) // len(self.ranks) or None


Reserve = Callable[["Resident"], AbstractAsyncContextManager[Hold]]
"""Makes room; raises ``FleetError`` when there is none."""


class NoRoom(FleetError):
    """Raised when the memory that was to be had is not. *is_shown*: an operator wants to know; the
    placer tries something else."""

    def __init__(self, message: str, *, is_shown: bool) -> None:
        super().__init__(
            ErrorCode.MODEL_UNAVAILABLE, message, retry_after_seconds=round(NO_ROOM_SECONDS)
        )
        self.is_shown = is_shown


class _Pauses:
    """Between tries: from one second on, doubling; so many *failures* have gone before."""

    def __init__(self, failures: int = 0) -> None:
        self._seconds = min(_FIRST_PAUSE_SECONDS * 2.0**failures, _LONGEST_PAUSE_SECONDS)

    def reset(self) -> None:
        """It has worked for a while."""
        self._seconds = _FIRST_PAUSE_SECONDS

    def next(self) -> float:
        """The pause before the next try."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)
        return seconds


class Resident:
    """One model that this node serves, or is about to."""

    def __init__(
        self,
        offer: Offer,
        identity: Identity,
        gateways: GatewayLiveness,
        jobs: Jobs,
        settings: EngineSettings,
        start_engine: StartEngine,
        publish: Callable[[ModelRecord], None],
        beat: Callable[[], None],
        reserve: Reserve,
        *,
        why: str,
        is_kept: bool,
        failures: int,
        begins: Callable[[], int],
        took: Callable[[float], None],
    ) -> None:
        """*is_kept*: a load that failed is tried again. *failures*: so many have gone before.
        *beat* lets the fleet know at once how busy the node is; *begins* says how many loads this
        node has done; *took* is told the seconds of one."""
        self.id = offer.model
        self.offer = offer
        self._identity = identity
        self._gateways = gateways
        self._jobs = jobs
        self._settings = settings
        self._start_engine = start_engine
        self._publish = publish
        self._beat = beat
        self._reserve = reserve
        self._why = why
        self._is_kept = is_kept
        self._pauses = _Pauses(failures)
        self._begins = begins
        self._took = took
        self._seconds = offer.load_seconds
        self._loads = 0
        self._recycling = False
        self.was_loaded = False
        """Its weights have been read."""
        self._hold: Hold | None = None
        self._worker: Worker | None = None
        self._engine: Engine | None = None
        self._revision = ""
        self.record = self._made(ModelState.LOADING)

    @property
    def worker(self) -> Worker | None:
        """The running worker while the model is ready or draining."""
        return self._worker

    @property
    def pids(self) -> tuple[int, ...]:
        """Of its engine; none while it has none."""
        return self._engine.pids if self._engine else ()

    @property
    def load(self) -> ModelLoad | None:
        """For the heartbeat; None while it is not ready."""
        return self._worker.load if self._worker else None

    async def run(self) -> None:
        """Keeps the model served until cancelled; returns when it cannot be loaded, after a pause
        in which nobody needs to try."""
        while True:
            try:
                await self._stay()
            except NoRoom as full:
                if not self._is_kept and not full.is_shown:
                    log.warning("%s: %s", self.id, full)
                    return
                pause = NO_ROOM_SECONDS
                self._fail(str(full), pause)
            except (FleetError, EngineLoadError) as failure:
                temporary = isinstance(failure, EngineLoadError) and failure.code in _TEMPORARY
                pause = self._pauses.next() if temporary else _HOPELESS_PAUSE_SECONDS
                self._fail(str(failure), pause)
            except Exception as bug:
                log.exception("model %s", self.id)
                pause = _HOPELESS_PAUSE_SECONDS
                self._fail(f"{type(bug).__name__}: {bug}", pause)
            await asyncio.sleep(pause)
            if not self._is_kept:
                return

    async def drain(self, seconds: float | None) -> None:
        """Lets running answers finish, for so long (None: as long as they take), and takes no
        more."""
        if self._worker:
            self._set(self._made(ModelState.DRAINING))
            await self._worker.drain(seconds)

    def recycle(self, loads: int) -> None:
        """Another engine takes the place of this one, unless somebody uses it; that is due every so
        many of the node's *loads*. Raises ``FleetError`` when it is in use or not ready."""
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
        self._set(self._made(ModelState.LOADING, progress=Progress("recycling", 0, 1, "steps")))
        worker.end()

    async def _stay(self) -> NoReturn:
        """Has the files, the memory, and an engine; another engine when one has died."""
        self._set(self._made(ModelState.LOADING, progress=Progress("resolving", 0, 1, "steps")))
        folder = await sources.resolve(self.offer.source, self._on_fetch)
        prompter = await asyncio.to_thread(Prompter.load, folder, self.offer.profile.tool_calls)
        self._revision = await asyncio.to_thread(sources.revision_digest, folder)
        async with self._reserve(self) as hold:
            self._hold = hold
            try:
                self._loads = self._begins()
                while True:
                    began = time.monotonic()
                    reason = await self._serve_once(folder, prompter, hold)
                    if self._recycling:
                        self._recycling = False
                        continue
                    if time.monotonic() - began > _LONGEST_PAUSE_SECONDS:
                        self._pauses.reset()
                    self._restarting(reason)
                    await asyncio.sleep(self._pauses.next())
            finally:
                self._hold = None

    async def _serve_once(self, folder: Path, prompter: Prompter, hold: Hold) -> str:
        """Loads and serves until the engine has died; returns why it did."""
        began = time.monotonic()
        start = self._settings.start(folder, self.offer.profile, hold)
        engine = self._engine = await self._load(start)
        self.was_loaded = True
        self._seconds = round(time.monotonic() - began, 2)
        self._took(self._seconds)
        try:
            await self._serve_with(engine, prompter)
        finally:
            self._engine = None
            await engine.stop()
        return engine.died.result()

    async def _load(self, start: Start) -> Engine:
        """Raises ``EngineLoadError`` when it cannot be loaded, or has died in every try."""
        for left in reversed(range(_LOAD_TRIES)):
            try:
                return await self._start_engine(start, on_progress=self._on_load)
            except EngineLoadError as failure:
                if failure.code not in _DIED or not left:
                    raise
                self._restarting(str(failure))
            await asyncio.sleep(self._pauses.next())
        raise AssertionError("the last try ends it")

    async def _serve_with(self, engine: Engine, prompter: Prompter) -> None:
        self._worker = Worker(
            self.id,
            self._identity,
            engine,
            prompter,
            self._gateways,
            self._jobs,
            self._revision,
            self._beat,
        )
        self._set(self._ready_record(engine.ready))
        self._beat()
        try:
            await self._worker.run()
        finally:
            self._worker = None

    # -- records -------------------------------------------------------------------------------

    def makes_room(self, done: int, total: int) -> None:
        """Others go for it; so many of them have."""
        progress = Progress("making room", done, total, "models")
        self._set(self._made(ModelState.LOADING, progress=progress))

    def _on_fetch(self, done: int, total: int) -> None:
        self._set(self._made(ModelState.FETCHING, progress=Progress("downloading", done, total)))

    def _on_load(self, progress: Loading) -> None:
        self._set(
            self._made(
                ModelState.LOADING,
                progress=Progress(str(progress.stage), progress.done_bytes, progress.total_bytes),
            )
        )

    def _ready_record(self, ready: Ready) -> ModelRecord:
        log.info(
            "%s is ready: %s, context %d, %d slots, loaded in %.1f s; KV cache %s; numerics %s",
            self.id,
            ready.dtype,
            ready.context_limit,
            ready.max_running,
            ready.load_seconds,
            ready.kv_cache_why,
            ready.numerics,
        )
        for note in ready.notes:
            log.warning("%s: %s", self.id, note)
        return msgspec.structs.replace(
            self._made(ModelState.READY),
            context_limit=ready.context_limit,
            slots=ready.max_running,
            memory_bytes=ready.weight_bytes + ready.kv_cache_bytes,
            numerics=ready.numerics,
        )

    def _restarting(self, reason: str) -> None:
        """Requests may wait: it comes back."""
        log.error("the engine of %s ended: %s", self.id, reason)
        error = WireError(ErrorCode.ENGINE_FAILED, f"Its engine ended: {reason}")
        progress = Progress("restarting", 0, 1, "steps")
        self._set(self._made(ModelState.LOADING, progress=progress, error=error))

    def _fail(self, why: str, retry_seconds: float) -> None:
        log.error("%s: %s", self.id, why)
        error = WireError(ErrorCode.MODEL_UNAVAILABLE, why)
        self._set(self._made(ModelState.FAILED, error=error, retry_seconds=retry_seconds))

    def _made(
        self,
        state: ModelState,
        *,
        progress: Progress | None = None,
        error: WireError | None = None,
        retry_seconds: float = 0.0,
    ) -> ModelRecord:
        return ModelRecord(
            node=self._identity.node,
            instance=self._identity.instance,
            model=self.id,
            state=state,
            progress=progress,
            error=error,
            retry_seconds=retry_seconds,
            revision=self._revision,
            has_files=self.offer.has_files or self._revision != "",
            estimate=self._hold.estimate if self._hold else self.offer.estimate,
            devices=self._hold.devices if self._hold else (),
            reserved_bytes=self._hold.estimate.bytes_each if self._hold else 0,
            load_seconds=self._seconds,
            why=self._why,
            loads=self._loads,
        )

    def _set(self, record: ModelRecord) -> None:
        self.record = record
        self._publish(record)
