"""The jobs of one loaded model: takes them, runs them on the engine, and informs gateways."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from neuron.engine_process.sequence_stream import EngineDied
from neuron.ipc.messages import Add, EngineStats
from neuron.service.engine_protocol import Engine
from neuron.service.identity import Identity
from neuron.service.jobs.gateway_liveness import GatewayLiveness
from neuron.service.jobs.preparation import in_progress
from neuron.service.jobs.registry import JobEntry, Jobs
from neuron.service.jobs.running_job import RunningJob
from neuron.service.jobs.step_time import StepTime
from neuron.service.jobs.suspects import Suspects
from neuron.service.jobs.unread import read_unread_job
from neuron.service.texts.model_texts import ModelTexts
from neuron.text.prompt import Prompt
from protocol import codec, frames, subjects
from protocol.bus import BusMessage, Delivery, JobPuller
from protocol.bus.jobs import (
    GIVE_BACK,
    GIVE_BACK_LATER,
    MAX_DELIVERIES,
    TERMINATE,
)
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelLoad
from protocol.job import PROTOCOL, Job

log = logging.getLogger("neuron")

IDLE_SECONDS = 0.05
"""A gap of this length between two jobs does not count as idle."""


class WorkerContext(NamedTuple):
    """What all workers of a node share."""

    identity: Identity
    gateways: GatewayLiveness
    jobs: Jobs
    beat: Callable[[], None]
    """Lets the fleet know at once how busy the node is."""


class ServedModel(NamedTuple):
    """What a worker must know of its model beside the engine."""

    id: str
    texts: ModelTexts
    revision: str
    """A digest of the model's files."""


class Worker:
    """Serves one model from READY until its engine is gone."""

    def __init__(self, model: ServedModel, engine: Engine, context: WorkerContext) -> None:
        self._model = model.id
        self._texts = model.texts
        self._revision = model.revision
        self._engine = engine
        self._identity = context.identity
        self._gateways = context.gateways
        self._jobs = context.jobs
        self._on_idle = context.beat
        self._slots = engine.ready.max_running
        self._numerics = engine.ready.numerics if engine.ready.exact else ""
        self._sequence_ids = itertools.count(1)
        self._active: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._suspects = Suspects()
        self._step_time = StepTime()
        self._idle_since = time.monotonic()
        self._draining = False
        self._ended = asyncio.Event()
        self._puller = JobPuller(
            self._identity.bus,
            self._model,
            has_room=lambda: self._free_slots > 0,
            pull_priority=lambda: self._step_time.priority(len(self._active) + 1),
            deliver=self._delivered,
        )

    @property
    def engine_stats(self) -> EngineStats:
        """The engine's state after its last step."""
        return self._engine.stats

    @property
    def step_age_seconds(self) -> float:
        """Seconds since the engine finished a step."""
        return self._engine.stats.step_age_seconds

    @property
    def _free_slots(self) -> int:
        return 0 if self._draining else max(0, self._slots - len(self._active))

    @property
    def load(self) -> ModelLoad:
        """The model's load, for the heartbeat."""
        count = len(self._active)
        return ModelLoad(
            running=min(count, self._slots),
            queued=max(0, count - self._slots),
            free_slots=self._free_slots,
            step_seconds=round(self._step_time.predicted(count + 1), 6),
            prefixes=self._engine.stats.prefixes,
            idle_seconds=0.0 if count else round(time.monotonic() - self._idle_since, 1),
        )

    async def run(self) -> None:
        """Runs until cancelled or until the engine dies; every job then has its last frame."""
        lane = subjects.run(self._model, self._identity.node)
        direct = await self._identity.bus.subscribe(lane, self._asked_directly)
        async with asyncio.TaskGroup() as tasks:
            pulling = tasks.create_task(self._puller.run(), name=f"pulls of {self._model}")
            pulse = tasks.create_task(self._keep_alive(), name=f"keep-alives of {self._model}")
            try:
                self._engine.died.add_done_callback(lambda _: self._ended.set())
                await self._ended.wait()
            finally:
                self._draining = True
                pulling.cancel()
                pulse.cancel()
                await direct.stop()
                await self._end_jobs()

    async def drain(self, seconds: float | None) -> None:
        """Takes no more jobs and waits for the running ones, at most *seconds* (None = no limit).

        Jobs that are still running then continue on another node.
        """
        self._draining = True
        if self._active:
            await asyncio.wait(list(self._active), timeout=seconds)
        for entry in self._jobs.of(self):
            if entry.running is not None:
                error = WireError(
                    ErrorCode.STREAM_LOST,
                    f"Node {self._identity.node} is unloading {self._model}.",
                    retry_after_seconds=1,
                )
                await entry.running.fail(error, retryable=True)
        await self._end_jobs()

    def stop_taking(self) -> bool:
        """Takes no more jobs if there are none now; returns whether that is so."""
        if self._active:
            return False
        self._draining = True
        return True

    def end(self) -> None:
        """Makes :meth:`run` end all jobs and return."""
        self._ended.set()

    def go_on(self, entry: JobEntry) -> bool:
        """Restarts a parked job; returns False when the engine is gone."""
        running = entry.running
        if running is None or self._engine.died.done() or self._draining:
            return False
        log.info("job %s resumed", entry.id)
        running.is_parked = False
        self._start(entry, self._run(entry, running))
        return True

    # -- incoming jobs -------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        if self._draining:
            self._send(self._identity.bus.publish(delivery.ack, GIVE_BACK))
            return
        try:
            job = read_unread_job(delivery.data)
        except codec.UnreadableMessage as error:
            log.error("dropped an unreadable job: %s", error)
            self._send(self._identity.bus.publish(delivery.ack, TERMINATE))
            return
        if job.protocol != PROTOCOL and delivery.deliveries < MAX_DELIVERIES:
            # another node may be of the gateway's version
            self._send(self._identity.bus.publish(delivery.ack, GIVE_BACK_LATER))
            return
        self._take(job, delivery.ack, delivery.deliveries)

    def _asked_directly(self, message: BusMessage) -> None:
        """Handles a job sent directly to this node, outside the queue.

        It continues a stream that another neuron began, or begins one whose prompt may be in the
        cache here. The latter must not overtake waiting jobs.
        """
        try:
            job = read_unread_job(message.data)
        except codec.UnreadableMessage as error:
            log.error("dropped an unreadable job: %s", error)
            return
        is_understood = job.protocol == PROTOCOL
        if (
            is_understood
            and self._free_slots
            and (job.attempt > 1 or self._puller.is_idle(job.priority))
        ):
            self._take(job, ack="", deliveries=1)
        else:
            busy = frames.Busy(
                attempt=job.attempt, instance=self._identity.instance, node=self._identity.node
            )
            self._send(self._identity.send(job, busy))

    def _take(self, job: Job, ack: str, deliveries: int) -> None:
        if deliveries >= MAX_DELIVERIES:
            # Nobody has acknowledged it, and nobody will: its gateway is gone, or never was.
            self._send(self._identity.bus.publish(ack, TERMINATE))
        known = self._jobs.get(job.id)
        if known is None or known.attempt < job.attempt:
            entry = self._jobs.add(job.id, job.attempt, self)
            entry.ack = ack
            self._start(entry, self._serve(entry, job, deliveries))
        elif known.attempt == job.attempt and known.running is not None:
            self._send(known.running.accept(ack))  # Accepted was lost, or came late
        elif known.attempt == job.attempt and ack:
            known.ack = ack  # its prompt is still being prepared
        elif known.attempt > job.attempt:
            stale = WireError(ErrorCode.STREAM_LOST, "A later attempt at this request is running.")
            self._send(self._identity.refuse(job, stale, ack=ack, retryable=False))

    def _start(self, entry: JobEntry, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"job {entry.id}")
        entry.task, entry.expires = task, float("inf")
        self._active.add(task)

        def done(_: object) -> None:
            self._active.discard(task)
            if task.cancelled() and entry.running is None and self._jobs.get(entry.id) is entry:
                self._give_back(entry)
            self._idle_since = time.monotonic()
            self._puller.wake()
            if not self._active:
                asyncio.get_running_loop().call_later(IDLE_SECONDS, self._say_idle)

        task.add_done_callback(done)

    def _give_back(self, entry: JobEntry) -> None:
        """Leaves a job whose prompt is not ready to others."""
        self._jobs.forget(entry.id)
        if entry.ack:
            self._send(self._identity.bus.publish(entry.ack, GIVE_BACK))

    def _say_idle(self) -> None:
        if not self._active:
            self._on_idle()

    def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    # -- one job -------------------------------------------------------------------------------

    async def _serve(self, entry: JobEntry, job: Job, deliveries: int) -> None:
        """Runs one job to its last frame; cancelling it stops the engine's work on it."""
        self._gateways.heard(job.gateway)
        try:
            async with in_progress(self._identity.bus, entry):
                prompt = await self._prepare(job, deliveries)
        except FleetError as error:
            retryable = error.error.code is ErrorCode.MODEL_UNAVAILABLE
            await self._identity.refuse(job, error.error, ack=entry.ack, retryable=retryable)
            self._jobs.ended(entry, keep=False)
            return
        except Exception:
            log.exception("job %s failed", job.id)
            await self._identity.refuse(job, self._bug("prepare"), ack=entry.ack, retryable=True)
            self._jobs.ended(entry, keep=False)
            return
        entry.running = RunningJob(
            self._identity,
            job,
            prompt,
            self._texts.text,
            revision=self._revision,
            numerics=self._numerics,
        )
        await entry.running.accept(entry.ack)
        await self._run(entry, entry.running)

    def _bug(self, what: str) -> WireError:
        return WireError(
            ErrorCode.INTERNAL,
            f"Node {self._identity.node} failed to {what} the request; its log has the details.",
        )

    async def _prepare(self, job: Job, deliveries: int) -> Prompt:
        if job.protocol != PROTOCOL:
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"The request is of protocol {job.protocol}, and node {self._identity.node} speaks "
                f"{PROTOCOL}. Run one version of cortex and neuron everywhere.",
            )
        if deliveries >= MAX_DELIVERIES:
            raise FleetError(
                ErrorCode.POISON,
                f"The request was delivered {deliveries} times, and no neuron survived or "
                "accepted it. Change the request before sending it again.",
            )
        prompt = await self._texts.prepare(job, self._engine.ready)
        if job.prompt_hash and job.prompt_hash != prompt.hash:
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"Node {self._identity.node} has other files of {self._model}: it renders a "
                "different prompt from the one that the answer began with.",
            )
        return prompt

    async def _run(self, entry: JobEntry, running: RunningJob) -> None:
        """Has the engine compute a job, from wherever its answer stands."""
        sequence_id = next(self._sequence_ids)
        was_let_in = False
        try:
            running.hold()
            await running.settle()
            await self._suspects.enter(sequence_id, suspect=running.job.suspect)
            prompt = running.prompt
            add = Add(sequence_id, prompt.tokens, prompt.sample, list(running.tokens))
            stream = await self._engine.add(add)
            was_let_in = True
            running.let_in()
            async for event in stream:
                stats = self._engine.stats
                self._step_time.saw(stats.step_number, stats.running, stats.step_seconds)
                await running.on_event(event, stats.step_seconds)
                if running.has_new_token:
                    self._suspects.leave(sequence_id)
                if running.is_over:
                    break
        except EngineDied as death:
            error = WireError(
                ErrorCode.ENGINE_FAILED if was_let_in else ErrorCode.MODEL_UNAVAILABLE,
                f"The engine of {self._model} on {self._identity.node} ended: {death}.",
                retry_after_seconds=2,
            )
            await running.fail(error, retryable=True)
        except Exception:
            log.exception("job %s failed", running.job.id)
            await running.fail(self._bug("compute"), retryable=True)
        finally:
            self._suspects.leave(sequence_id)
            self._engine.abort(sequence_id)
            self._jobs.ended(entry, keep=running.is_over or running.is_parked)

    # -- all jobs ------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Sends KeepAlive every second round; checks for lost gateways in every round."""
        half = self._identity.timing.keep_alive_seconds / 2
        for is_due in itertools.cycle((False, True)):
            await asyncio.sleep(half)
            for entry in self._jobs.of(self):
                running = entry.running
                if running is None:
                    continue
                if self._gateways.is_gone(running.job.gateway):
                    self._park(entry, running)
                elif is_due and self._identity.bus.is_connected:
                    await running.keep_alive(self.step_age_seconds)

    def _park(self, entry: JobEntry, running: RunningJob) -> None:
        """Stops a job whose gateway is gone; keeps it only if a streaming client may come back."""
        running.is_parked = running.job.client is not None
        verb = "parked" if running.is_parked else "stopped"
        log.warning("job %s: gateway %s is gone; %s", entry.id, running.job.gateway, verb)
        entry.stop()

    async def _end_jobs(self) -> None:
        tasks = list(self._active)
        if self._engine.died.done():
            await asyncio.wait(tasks, timeout=1) if tasks else None
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
