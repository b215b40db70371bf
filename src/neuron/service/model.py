"""The life of one model on this node: absent → loading → ready → draining → absent, or failed.

Every state is left by itself. A failed load is tried again after a pause that grows, an engine
that died is replaced, and each change is one KV record that everybody sees.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from neuron import store
from neuron.engine.client import EngineLoadError
from neuron.engine.messages import Loading, Ready, Start
from neuron.service.engine import Engine, StartEngine
from neuron.service.gateways import Gateways
from neuron.service.job import Identity
from neuron.service.jobs import Jobs
from neuron.service.prompt import Prompter
from neuron.service.worker import Worker
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelLoad, ModelRecord, ModelState, Progress

log = logging.getLogger("model")

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_HOPELESS_PAUSE_SECONDS = 60.0
"""For a folder that is damaged or unsupported: somebody has to change it first."""
_TEMPORARY = ("crashed", "timeout", "out_of_memory")


class EngineSettings(NamedTuple):
    """How engines are started on this node."""

    device: str
    dtype: str
    exact: bool | None
    slots: int
    max_context: int | None
    kv_cache_bytes: int | None
    threads: int | None

    def start(self, folder: Path) -> Start:
        """The engine's first message."""
        return Start(
            model_dir=str(folder),
            device=self.device,
            dtype=self.dtype,
            exact=self.exact,
            max_running=self.slots,
            max_context=self.max_context,
            kv_cache_bytes=self.kv_cache_bytes,
            threads=self.threads,
        )


class _Pauses:
    """Between tries: from one second on, doubling."""

    def __init__(self) -> None:
        self._seconds = _FIRST_PAUSE_SECONDS

    def next(self) -> float:
        """The pause before the next try."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)
        return seconds


class Model:
    """One model that this node serves."""

    def __init__(
        self,
        source: str,
        identity: Identity,
        gateways: Gateways,
        jobs: Jobs,
        settings: EngineSettings,
        start_engine: StartEngine,
        publish: Callable[[ModelRecord], None],
    ) -> None:
        self.id = store.model_id(source)
        self._source = source
        self._identity = identity
        self._gateways = gateways
        self._jobs = jobs
        self._settings = settings
        self._start_engine = start_engine
        self._publish = publish
        self._worker: Worker | None = None
        self._revision = ""
        self.record = self._made(ModelState.ABSENT)

    @property
    def worker(self) -> Worker | None:
        """The running worker while the model is ready or draining."""
        return self._worker

    @property
    def load(self) -> ModelLoad | None:
        """For the heartbeat; None while it is not ready."""
        return self._worker.load if self._worker else None

    async def run(self) -> None:
        """Keeps the model served until cancelled."""
        pauses = _Pauses()
        while True:
            began = time.monotonic()
            try:
                reason = await self._serve_once()
            except (FleetError, EngineLoadError) as failure:
                temporary = isinstance(failure, EngineLoadError) and failure.code in _TEMPORARY
                pause = pauses.next() if temporary else _HOPELESS_PAUSE_SECONDS
                self._fail(str(failure), pause)
            except Exception as bug:
                log.exception("model %s", self.id)
                pause = _HOPELESS_PAUSE_SECONDS
                self._fail(f"{type(bug).__name__}: {bug}", pause)
            else:
                if time.monotonic() - began > _LONGEST_PAUSE_SECONDS:
                    pauses = _Pauses()
                pause = pauses.next()
                self._restarting(reason)
            await asyncio.sleep(pause)

    async def drain(self, seconds: float | None) -> None:
        """Lets running answers finish, for so long (None: as long as they take), and takes no
        more."""
        if self._worker:
            self._set(self._made(ModelState.DRAINING))
            await self._worker.drain(seconds)

    async def _serve_once(self) -> str:
        """Loads and serves until the engine has died; returns why it did."""
        self._set(self._made(ModelState.LOADING, progress=Progress("resolving", 0, 1, "steps")))
        folder = await store.resolve(self._source, self._on_fetch)
        prompter = await asyncio.to_thread(Prompter.load, folder)
        self._revision = await asyncio.to_thread(store.revision_digest, folder)
        engine = await self._start_engine(self._settings.start(folder), on_progress=self._on_load)
        try:
            await self._serve_with(engine, prompter)
        finally:
            await engine.stop()
        return engine.died.result()

    async def _serve_with(self, engine: Engine, prompter: Prompter) -> None:
        self._worker = Worker(
            self.id,
            self._identity,
            engine,
            prompter,
            self._gateways,
            self._jobs,
            self._revision,
        )
        self._set(self._ready_record(engine.ready))
        try:
            await self._worker.run()
        finally:
            self._worker = None

    # -- records -------------------------------------------------------------------------------

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
        return ModelRecord(
            node=self._identity.node,
            instance=self._identity.instance,
            model=self.id,
            state=ModelState.READY,
            revision=self._revision,
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
        )

    def _set(self, record: ModelRecord) -> None:
        self.record = record
        self._publish(record)
