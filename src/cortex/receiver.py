"""Receives the frames of all jobs of this gateway on one subscription, and watches over silence.

It owns the streams that are under way and what is said to neurons about them (cancel, ping). What
a frame means is decided by ``stream``; how a job got to a neuron is ``dispatch``'s business.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from cortex.inbox import Inbox
from cortex.stream import Broken, Event, Started, Stranger, StreamState
from protocol import codec, subjects
from protocol.bus import Bus, BusMessage
from protocol.errors import FleetError
from protocol.frames import Accepted, AnyFrame, Busy, Failed, Finished
from protocol.job import Cancel, Job, Ping, Steer

log = logging.getLogger("receiver")

WATCH_EVERY_SECONDS = 0.2
PROBE_AFTER_SECONDS = 1.0
LOST_AFTER_SECONDS = 2.0
"""Silence after which a stream counts as lost; a probe is sent half-way. Neurons send a KeepAlive
every 0.5 s."""


class Stream:
    """One request's answer as it arrives."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inbox: Inbox[Event] = Inbox()
        self.state = StreamState(job.attempt)
        self.heard_at = float("inf")
        """Monotonic time of the last frame; infinity before the first one."""
        self.probed = False
        self.taken = asyncio.Event()
        """A neuron has accepted or refused the job, or the stream is over."""

    def deliver(self, event: Event) -> None:
        """Hands an event to the reader."""
        if isinstance(event, Started | Broken):
            self.taken.set()
        self.inbox.put(event)


class Receiver:
    """All streams that are under way."""

    def __init__(
        self,
        bus: Bus,
        gateway: str,
        *,
        acknowledge: Callable[[str], Coroutine[Any, Any, None]],
        node_of_instance: Callable[[str], str | None],
    ) -> None:
        self._bus = bus
        self._gateway = gateway
        self._acknowledge = acknowledge
        self._node_of_instance = node_of_instance
        self._streams: dict[str, Stream] = {}
        self._connected_since = time.monotonic()
        self._orders: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    @contextlib.asynccontextmanager
    async def receiving(self, stream: Stream) -> AsyncIterator[None]:
        """Frames of this job reach the stream during the block; a job that is not over at its end
        is cancelled."""
        self._streams[stream.job.id] = stream
        try:
            yield
        finally:
            del self._streams[stream.job.id]
            if not stream.state.is_over:
                self._steer(stream, Cancel(stream.job.attempt))

    def give_up(self, stream: Stream, error: FleetError) -> None:
        """The stream ends here, for a reason that no neuron gave."""
        if not stream.state.is_over:
            stream.state.is_over = True
            self._steer(stream, Cancel(stream.job.attempt))
            stream.deliver(Broken(error.error))

    async def run(self) -> None:
        """Until cancelled."""

        async def reconnected() -> None:
            self._connected_since = time.monotonic()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        replies = await self._bus.subscribe(subjects.all_replies(self._gateway), self._arrived)
        try:
            while True:
                before = time.monotonic()
                await asyncio.sleep(WATCH_EVERY_SECONDS)
                self._watch(lag_seconds=time.monotonic() - before - WATCH_EVERY_SECONDS)
        finally:
            forget_reconnect()
            await replies.stop()

    # -- frames --------------------------------------------------------------------------------

    def _arrived(self, message: BusMessage) -> None:
        try:
            frame = codec.read_frame(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored a frame: %s", error)
            return
        job_id = subjects.last_token(message.subject)
        if isinstance(frame, Accepted | Failed) and frame.ack:
            self._send(self._acknowledge(frame.ack))
        stream = self._streams.get(job_id)
        if stream is None:
            self._stop_stranger(job_id, frame)
            return
        event = stream.state.receive(frame)
        if frame.instance == stream.state.instance:
            stream.heard_at = time.monotonic()
            stream.probed = False
        match event:
            case None:
                return
            case Stranger():
                self._stop_stranger(job_id, frame)
            case Broken() if not isinstance(frame, Failed):
                self._steer(stream, Cancel(frame.attempt))  # it would go on for nobody
                stream.deliver(event)
            case _:
                stream.deliver(event)

    def _watch(self, lag_seconds: float) -> None:
        """Silence of a neuron is only silence while we could have heard it."""
        now = time.monotonic()
        if not self._bus.is_connected or lag_seconds > PROBE_AFTER_SECONDS / 2:
            self._connected_since = now
        for stream in list(self._streams.values()):
            if stream.state.is_over:
                continue
            silence = now - max(stream.heard_at, self._connected_since)
            if silence > LOST_AFTER_SECONDS:
                self._steer(stream, Cancel(stream.job.attempt))
                stream.deliver(stream.state.silence(silence))
            elif silence > PROBE_AFTER_SECONDS and not stream.probed:
                stream.probed = True
                self._steer(stream, Ping(stream.job.attempt))

    # -- orders --------------------------------------------------------------------------------

    def _stop_stranger(self, job_id: str, frame: AnyFrame) -> None:
        """Somebody works on a job that nobody waits for: one that was cancelled before it was
        accepted, or a second delivery."""
        if isinstance(frame, Finished | Failed | Busy):
            return
        node = frame.node if isinstance(frame, Accepted) else self._node_of_instance(frame.instance)
        if node:
            self._order(node, job_id, Cancel(frame.attempt))

    def _steer(self, stream: Stream, order: Steer) -> None:
        """Before Accepted nobody is known to have the job; that frame will find it unknown."""
        if stream.state.node:
            self._order(stream.state.node, stream.job.id, order)

    def _order(self, node: str, job_id: str, order: Steer) -> None:
        self._send(self._bus.publish(subjects.steer(node, job_id), codec.encode(order)))

    def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
