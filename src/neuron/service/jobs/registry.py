"""All jobs that this node runs or keeps, by id, and gateways' requests about single jobs.

A job is *running* (a task works on it), *parked* (its gateway is gone; its answer so far is kept)
or *over* (kept because its last frames may have been lost). Kept jobs are dropped after 30 s.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from neuron.service.identity import Identity
from neuron.service.jobs.running_job import RunningJob
from protocol import codec, frames, subjects
from protocol.bus import BusMessage
from protocol.errors import ErrorCode, WireError
from protocol.job import Cancel, Claim, Claimed, Job, Located, Resend

log = logging.getLogger("neuron")


class JobHost(Protocol):
    """Computes a job: the worker of its model."""

    @property
    def step_age_seconds(self) -> float:
        """Seconds since its engine finished a step."""
        ...

    def go_on(self, entry: "JobEntry") -> bool:
        """Restarts a parked job; returns False when the engine is gone."""
        ...


class JobEntry:
    """One job on this node."""

    def __init__(self, job_id: str, attempt: int, host: JobHost) -> None:
        self.id = job_id
        self.attempt = attempt
        self.host = host
        self.running: RunningJob | None = None
        """None until the prompt is ready."""
        self.ack = ""
        """Where its latest delivery is acknowledged; empty if it came directly."""
        self.task: asyncio.Task[None] | None = None
        """None while the job is only kept."""
        self.expires = float("inf")

    def stop(self) -> None:
        """Cancels the work on it, if any."""
        if self.task is not None:
            self.task.cancel()


class Jobs:
    """The node's jobs; knows neither models nor engines."""

    def __init__(self, identity: Identity, clock: Callable[[], float] = time.monotonic) -> None:
        self._identity = identity
        self._clock = clock
        self._entries: dict[str, JobEntry] = {}
        self._answers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, job_id: str) -> JobEntry | None:
        """Returns the job, whether running or kept."""
        return self._entries.get(job_id)

    def of(self, host: JobHost) -> Iterator[JobEntry]:
        """Yields the jobs that *host* is working on."""
        return (e for e in list(self._entries.values()) if e.host is host and e.task is not None)

    def add(self, job_id: str, attempt: int, host: JobHost) -> JobEntry:
        """Adds a job or a new attempt at one, and stops the earlier attempt."""
        self.forget(job_id)
        entry = self._entries[job_id] = JobEntry(job_id, attempt, host)
        return entry

    def ended(self, entry: JobEntry, *, keep: bool) -> None:
        """Ends the current task's work on a job; *keep* it if it may still be asked for."""
        if entry.task is not asyncio.current_task():
            return  # another task has continued it
        entry.task = None
        entry.expires = self._clock() + self._identity.timing.kept_seconds
        if not keep and self._entries.get(entry.id) is entry:
            del self._entries[entry.id]

    def forget(self, job_id: str) -> None:
        """Stops a job and drops it."""
        found = self._entries.pop(job_id, None)
        if found is not None:
            found.stop()

    def expire(self) -> None:
        """Drops jobs that have been kept long enough."""
        now = self._clock()
        for entry in list(self._entries.values()):
            if entry.expires <= now:
                self.forget(entry.id)

    # -- requests from gateways ----------------------------------------------------------------

    def steered(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.job_control.<node>.<job>``."""
        try:
            order = codec.read_steer(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable job control message: %s", error)
            return
        job_id = subjects.last_token(message.subject)
        entry = self._entries.get(job_id)
        match order:
            case Cancel(attempt):
                if entry is not None and entry.attempt <= attempt:
                    self.forget(job_id)
            case Resend():
                self._answer(self._resume(job_id, entry, order))

    def found(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.locate.<job>``."""
        entry = self._entries.get(subjects.last_token(message.subject))
        if entry is not None and entry.running is not None and message.reply:
            found = Located(
                self._identity.node,
                self._identity.instance,
                entry.attempt,
                entry.running.next_index,
            )
            self._answer(self._identity.bus.publish(message.reply, codec.encode(found)))

    def taken(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.claim.<node>.<job>``."""
        try:
            take = codec.read_take(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable claim: %s", error)
            return
        taken = Claimed(self._take(subjects.last_token(message.subject), take))
        self._answer(self._identity.bus.publish(message.reply, codec.encode(taken)))

    def _take(self, job_id: str, take: Claim) -> Job | None:
        entry = self._entries.get(job_id)
        running = entry.running if entry else None
        if entry is None or running is None or entry.attempt >= take.attempt:
            return None
        client = running.job.client
        if client is None or client.owner != take.owner:
            return None
        self._unpark(entry, running)
        log.info("job %s: claimed by gateway %s", job_id, take.gateway)
        entry.attempt = take.attempt
        running.hand_over(take.gateway, take.attempt)
        return running.job

    @staticmethod
    def _unpark(entry: JobEntry, running: RunningJob) -> None:
        """Restarts a parked job, because a gateway wants it again."""
        if running.is_parked and not entry.host.go_on(entry):
            running.give_up()

    async def _resume(self, job_id: str, entry: JobEntry | None, order: Resend) -> None:
        if entry is not None and entry.attempt == order.attempt:
            running = entry.running
            if running is None:
                return  # Accepted must come first
            self._unpark(entry, running)
            await running.resume(order.index, entry.host.step_age_seconds)
            return
        is_elsewhere = entry is not None and entry.attempt > order.attempt
        error = WireError(
            ErrorCode.STREAM_LOST,
            "Another gateway or node has taken over the stream."
            if is_elsewhere
            else f"Node {self._identity.node} no longer knows the request.",
        )
        failed = frames.Failed(
            attempt=order.attempt,
            instance=self._identity.instance,
            node=self._identity.node,
            error=error,
            retryable=not is_elsewhere,
        )
        subject = subjects.reply(order.gateway, job_id)
        await self._identity.bus.publish(subject, codec.encode(failed))

    def _answer(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
