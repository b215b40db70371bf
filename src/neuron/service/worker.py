"""The jobs of one loaded model: pulls them, runs them on the engine, keeps gateways informed."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Coroutine
from typing import Any

from neuron.engine.messages import Add, EngineStats
from neuron.engine.stream import EngineDied
from neuron.service.engine import Engine
from neuron.service.gateways import Gateways
from neuron.service.job import Identity, RunningJob
from neuron.service.prompt import Prompter
from protocol import codec
from protocol.bus import Delivery, JobPuller
from protocol.bus.jobs import MAX_DELIVERIES
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelLoad
from protocol.job import Job

log = logging.getLogger("neuron")

KEEP_ALIVE_SECONDS = 0.5
_PULL_PRIORITIES = 10


class Worker:
    """Serves one model from READY until its engine is gone."""

    def __init__(
        self,
        model: str,
        identity: Identity,
        engine: Engine,
        prompter: Prompter,
        gateways: Gateways,
    ) -> None:
        self._model = model
        self._identity = identity
        self._engine = engine
        self._prompter = prompter
        self._gateways = gateways
        self._slots = engine.ready.max_running
        self._sequence_ids = itertools.count(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, RunningJob] = {}
        self._idle_since = time.monotonic()
        self._draining = False
        self._puller = JobPuller(
            identity.bus,
            model,
            has_room=lambda: not self._draining and len(self._tasks) < self._slots,
            pull_priority=lambda: _PULL_PRIORITIES * len(self._tasks) // self._slots,
            deliver=self._delivered,
        )

    @property
    def engine_stats(self) -> EngineStats:
        """The engine's state after its last step."""
        return self._engine.stats

    @property
    def load(self) -> ModelLoad:
        """For the heartbeat."""
        count = len(self._tasks)
        return ModelLoad(
            running=min(count, self._slots),
            queued=max(0, count - self._slots),
            free_slots=0 if self._draining else max(0, self._slots - count),
            prefixes=self._engine.stats.prefixes,
            idle_seconds=0.0 if count else round(time.monotonic() - self._idle_since, 1),
        )

    async def run(self) -> None:
        """Until cancelled or the engine dies; then every job has got its last frame."""
        async with asyncio.TaskGroup() as tasks:
            pulling = tasks.create_task(self._puller.run(), name=f"pulls of {self._model}")
            pulse = tasks.create_task(self._keep_alive(), name=f"keep-alives of {self._model}")
            try:
                await asyncio.shield(self._engine.died)
            finally:
                pulling.cancel()
                pulse.cancel()
                await self._end_jobs()

    async def drain(self, seconds: float) -> None:
        """Takes no more jobs and waits for the running ones, but not longer than that."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)
        for running in list(self._running.values()):
            error = WireError(
                ErrorCode.STREAM_LOST,
                f"Node {self._identity.node} is shutting down. Send the request again.",
                retry_after_seconds=1,
            )
            await running.fail(error, retryable=True)
        await self._end_jobs()

    def cancel(self, job_id: str, attempt: int) -> None:
        """Stops a job, up to this attempt."""
        running = self._running.get(job_id)
        if running is not None and running.job.attempt > attempt:
            return
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()

    async def ping(self, job_id: str) -> None:
        """Answers a gateway that has heard nothing of a job."""
        running = self._running.get(job_id)
        if running is not None:
            await running.keep_alive(self._engine.stats.step_age_seconds)

    # -- one job -------------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        try:
            job = codec.read_job(delivery.data)
        except codec.UnreadableMessage as error:
            log.error("dropped a job that cannot be read: %s", error)
            self._track(delivery.ack, self._identity.bus.publish(delivery.ack, b"+TERM"))
            return
        if job.id not in self._tasks:
            self._track(job.id, self._serve(job, delivery))
        elif job.id in self._running:  # Accepted got lost, or came late
            self._track(f"{job.id} again", self._running[job.id].accept(delivery.ack))

    def _track(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks[name] = task

        def done(_: object) -> None:
            if self._tasks.get(name) is task:
                del self._tasks[name]
            self._idle_since = time.monotonic()
            self._puller.wake()

        task.add_done_callback(done)

    async def _serve(self, job: Job, delivery: Delivery) -> None:
        """Runs one job to its last frame; cancelling it stops the engine's work for it."""
        self._gateways.heard(job.gateway)
        try:
            if delivery.deliveries >= MAX_DELIVERIES:
                raise FleetError(
                    ErrorCode.POISON,
                    f"The request was delivered {delivery.deliveries} times and no neuron "
                    "survived or accepted it.",
                )
            prompt = await self._prompter.prepare(job, self._engine.ready)
        except FleetError as error:
            await self._identity.refuse(job, error.error, ack=delivery.ack, retryable=False)
            return
        except Exception:
            log.exception("job %s", job.id)
            error_out = WireError(
                ErrorCode.INTERNAL, f"Node {self._identity.node} failed; its log has the details."
            )
            await self._identity.refuse(job, error_out, ack=delivery.ack, retryable=True)
            return
        sequence_id = next(self._sequence_ids)
        running = RunningJob(self._identity, job, prompt, sequence_id)
        self._running[job.id] = running
        try:
            await self._run_on_engine(
                running, Add(sequence_id, prompt.tokens, prompt.sample), delivery
            )
        finally:
            self._engine.abort(sequence_id)
            if self._running.get(job.id) is running:
                del self._running[job.id]

    async def _run_on_engine(self, running: RunningJob, add: Add, delivery: Delivery) -> None:
        try:
            stream = await self._engine.add(add)
            await running.accept(delivery.ack)
            async for event in stream:
                await running.on_event(event, self._engine.stats.step_seconds)
        except EngineDied as death:
            error = WireError(
                ErrorCode.ENGINE_FAILED,
                f"The engine of {self._model} on {self._identity.node} ended: {death}. It is "
                "started again; send the request again.",
                retry_after_seconds=2,
            )
            await running.fail(error, retryable=True)

    # -- all jobs ------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            age = self._engine.stats.step_age_seconds
            for job_id, running in list(self._running.items()):
                if self._gateways.is_gone(running.job.gateway):
                    log.warning("job %s: its gateway is gone", job_id)
                    self.cancel(job_id, running.job.attempt)
                else:
                    await running.keep_alive(age)

    async def _end_jobs(self) -> None:
        tasks = list(self._tasks.values())
        if self._engine.died.done():
            await asyncio.wait(tasks, timeout=1) if tasks else None
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
