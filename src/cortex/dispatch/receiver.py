"""Receives the frames of all of this gateway's jobs on one subscription, and watches for silence.

It owns the streams that are under way and the orders sent to neurons about them (cancel, resume).
``streams.state`` decides what a frame means; ``attempts`` decides who serves a job next.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from cortex.dispatch import refusals
from cortex.dispatch.prefix_affinity import Prefix
from cortex.streams.events import Action, Alive, Broken, Event, Move, Parts, Repair, Stranger
from cortex.streams.inbox import Inbox
from cortex.streams.state import StreamState
from cortex.telemetry.request_record import Record
from protocol import codec, subjects
from protocol.bus import Bus, BusMessage, Hearing
from protocol.errors import ErrorCode, WireError
from protocol.frames import Accepted, AnyFrame, Busy, Failed, Finished
from protocol.job import Cancel, Job, Resend, Steer
from protocol.timing import NORMAL, Timing

log = logging.getLogger("receiver")

IDLE_SECONDS = 300.0
"""A stream that has a neuron ends after this long without a token or a step of the prompt; one that
makes progress has no limit."""
_REPAIR_EVERY_SECONDS = 0.2
_STOP_EVERY_SECONDS = 0.5
_STOPPED_SECONDS = 10.0


class Stream:
    """One request's answer while it arrives."""

    def __init__(self, job: Job, arrived: asyncio.Event | None = None) -> None:
        """Sets *arrived* whenever its inbox receives something."""
        self.job = job
        """The job of the present attempt."""
        self.inbox: Inbox[Event] = Inbox(arrived)
        self.state = StreamState(job.attempt)
        self.heard_at = float("inf")
        """Monotonic time of the last frame of this attempt; infinity before the first one."""
        self.progress_at = float("inf")
        """Monotonic time of the last token, or of the last progress on the prompt."""
        self.shown: Event | None = None
        """What the last ``KeepAlive`` reported."""
        self.asked_at = float("-inf")
        """Monotonic time at which missing frames were last requested."""
        self.asked_for = -1
        """The token from which they were requested."""
        self.turn = asyncio.Event()
        """Set on what the attempts wait for: a neuron accepted the job, the attempt ended, or the
        stream is over."""
        self.move: Move | None = None
        """Why the present attempt has ended."""
        self.record = Record(job)
        self.siblings: tuple[Stream, ...] = ()
        """The streams of all choices of its answer."""
        self.waits_for = ""
        """What happens to its model while it waits, for people."""
        self.prefixes: list[Prefix] = []
        """Those of its conversation, by which the node that has computed them is found."""

    @property
    def waits_for_siblings(self) -> bool:
        """Whether other choices of its own answer are being computed: a client that asks for more
        of them than there are slots waits for itself."""
        return any(s is not self and s.state.node and not s.state.is_over for s in self.siblings)

    def deliver(self, event: Event) -> None:
        """Hands an event to the reader."""
        self.record.saw(event)
        self.inbox.put(event)
        if isinstance(event, Broken):
            self.turn.set()

    def end_attempt(self, move: Move) -> None:
        """Ends the present attempt, so that another one must continue."""
        if self.move is None:
            self.move = move
            self.turn.set()

    def begin_attempt(self, job: Job) -> None:
        """Begins an attempt; from now on only frames of *job* count."""
        self.job = job
        self.state.next_attempt(job.attempt)
        self.heard_at = self.progress_at = float("inf")
        self.asked_for = -1
        self.move = None
        self.turn.clear()


class Receiver:
    """All streams under way at this gateway."""

    def __init__(
        self,
        bus: Bus,
        gateway: str,
        *,
        acknowledge: Callable[[str], Coroutine[Any, Any, None]],
        node_of_instance: Callable[[str], str | None],
        timing: Timing = NORMAL,
    ) -> None:
        self._timing = timing
        self._bus = bus
        self._gateway = gateway
        self._acknowledge = acknowledge
        self._node_of_instance = node_of_instance
        self._streams: dict[str, Stream] = {}
        self.hearing = Hearing(timing)
        self._orders: set[asyncio.Task[None]] = set()
        self._stopped: dict[tuple[str, str, int], float] = {}
        self._expected: Counter[str] = Counter()
        self.is_leaving = False
        """Set when this gateway is stopping: its streams continue at other gateways and are not
        cancelled."""

    def __len__(self) -> int:
        return len(self._streams)

    @contextlib.asynccontextmanager
    async def receiving(self, stream: Stream) -> AsyncIterator[None]:
        """Delivers the job's frames to the stream during the block; cancels the job at its end
        unless it is over."""
        earlier = self._streams.get(stream.job.id)
        if earlier is not None:
            taken_up = WireError(ErrorCode.STREAM_LOST, "Another connection claimed this stream.")
            earlier.state.give_up()
            earlier.deliver(Broken(taken_up))
        self._streams[stream.job.id] = stream
        try:
            yield
        finally:
            if self._streams.get(stream.job.id) is stream:
                del self._streams[stream.job.id]
            if not stream.state.is_over and not (self.is_leaving and stream.job.client):
                self.steer(stream, Cancel(stream.job.attempt))

    @contextlib.contextmanager
    def expecting(self, job_id: str) -> Iterator[None]:
        """Accepts frames of this job during the block, even while it has no stream here."""
        self._expected[job_id] += 1
        try:
            yield
        finally:
            self._expected[job_id] -= 1
            if not self._expected[job_id]:
                del self._expected[job_id]

    def give_up(self, stream: Stream, error: WireError) -> None:
        """Ends the stream with an error that did not come from a neuron."""
        if not stream.state.is_over:
            self.steer(stream, Cancel(stream.job.attempt))
            stream.state.give_up()
            stream.deliver(Broken(error))

    async def run(self) -> None:
        """Receives frames until it is cancelled."""

        async def reconnected() -> None:
            self.hearing.reconnected()
            self._ask_everyone()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        replies = await self._bus.subscribe(subjects.all_replies(self._gateway), self._arrived)
        try:
            while True:
                before = time.monotonic()
                await asyncio.sleep(self._timing.watch_seconds)
                lag_seconds = time.monotonic() - before - self._timing.watch_seconds
                self._watch(lag_seconds)
        finally:
            forget_reconnect()
            await replies.stop()

    # -- frames --------------------------------------------------------------------------------

    def _arrived(self, message: BusMessage) -> None:
        try:
            frame = codec.read_frame(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable frame: %s", error)
            return
        job_id = subjects.last_token(message.subject)
        stream = self._streams.get(job_id)
        outcome = None if stream is None else stream.state.receive(frame)
        if stream is not None and isinstance(outcome, Parts):  # nearly all frames are of this type
            stream.heard_at = stream.progress_at = time.monotonic()
            stream.deliver(outcome)
            return
        if isinstance(frame, Accepted | Failed) and frame.ack:
            self._send(self._acknowledge(frame.ack))
        if stream is None:
            self._stop_stranger(job_id, frame)
        else:
            self._follow(stream, frame, outcome)

    def _follow(self, stream: Stream, frame: AnyFrame, outcome: Event | Action | None) -> None:
        """Carries out what the state machine decided about a frame."""
        if frame.attempt == stream.state.attempt and frame.instance == stream.state.instance:
            stream.heard_at = time.monotonic()
            if isinstance(frame, Accepted):
                stream.progress_at = stream.heard_at
                stream.turn.set()
        match outcome:
            case None:
                pass
            case Stranger():
                self._stop_stranger(stream.job.id, frame)
            case Repair(instance, start):
                self._ask(stream, self._node_of_instance(instance) or stream.state.node, start)
            case Move():
                if isinstance(frame, Accepted):
                    self._order(frame.node, stream.job.id, Cancel(frame.attempt))
                stream.end_attempt(outcome)
            case Alive():
                if outcome != stream.shown:
                    stream.shown, stream.progress_at = outcome, stream.heard_at
                stream.deliver(outcome)
            case _:
                stream.deliver(outcome)

    def echo(self) -> None:
        """Records that our own heartbeat came back."""
        silence = self.hearing.echo()
        if silence:
            log.warning("NATS was silent for %.1f s", silence)
            self._ask_everyone()

    def _watch(self, lag_seconds: float) -> None:
        """Ends attempts of silent neurons; silence counts only while we could have heard them."""
        now, times = time.monotonic(), self._timing
        if lag_seconds > times.lag_seconds:
            log.warning("this gateway's event loop stalled for %.1f s", lag_seconds)
            self.hearing.stalled()
            self._ask_everyone()
        if self.hearing.is_deaf:
            self.hearing.missed()
            if self.hearing.is_cut_off:
                self._cut_off()
            return
        for stream in list(self._streams.values()):
            if stream.state.is_over or stream.move is not None:
                continue
            silence = now - max(stream.heard_at, self.hearing.since)
            if silence > times.lost_after_seconds:
                why = f"Node {stream.state.node} has been silent for {silence:.1f} s."
                stream.end_attempt(Move(WireError(ErrorCode.STREAM_LOST, why), is_death=True))
            elif now - max(stream.progress_at, self.hearing.since) > IDLE_SECONDS:
                why = f"Node {stream.state.node} has made no progress for {IDLE_SECONDS:.0f} s."
                self.give_up(stream, WireError(ErrorCode.TIMEOUT, why, retry_after_seconds=5))
            elif min(silence, now - stream.asked_at) > times.probe_after_seconds:
                self._ask(stream, stream.state.node, stream.state.next_index)

    def _cut_off(self) -> None:
        silent = refusals.bus_is_silent(self._timing.cut_off_seconds)
        for stream in list(self._streams.values()):
            self.give_up(stream, silent)

    # -- orders --------------------------------------------------------------------------------

    def _ask_everyone(self) -> None:
        """Asks all neurons for what was missed while nothing could be heard."""
        for stream in self._streams.values():
            if stream.state.node and not stream.state.is_over:
                self._ask(stream, stream.state.node, stream.state.next_index)

    def _ask(self, stream: Stream, node: str, index: int) -> None:
        now = time.monotonic()
        is_new = index != stream.asked_for  # else every frame behind a gap would ask again
        if node and (is_new or now - stream.asked_at > _REPAIR_EVERY_SECONDS):
            stream.asked_at, stream.asked_for = now, index
            order = Resend(stream.job.attempt, index, self._gateway)
            self._order(node, stream.job.id, order)

    def resume(self, stream: Stream, node: str) -> None:
        """Asks a neuron to resend everything from the stream's next token on."""
        self._ask(stream, node, stream.state.next_index)

    def _stop_stranger(self, job_id: str, frame: AnyFrame) -> None:
        """Stops work on a job that nobody waits for: one that was cancelled before it was accepted,
        a second delivery, or a replaced attempt."""
        if isinstance(frame, Finished | Failed | Busy) or job_id in self._expected:
            return
        if self.is_leaving:
            return  # another gateway may be about to claim it
        node = frame.node if isinstance(frame, Accepted) else self._node_of_instance(frame.instance)
        key, now = (job_id, frame.instance, frame.attempt), time.monotonic()
        if node and now - self._stopped.get(key, 0.0) > _STOP_EVERY_SECONDS:
            while self._stopped and now - next(iter(self._stopped.values())) > _STOPPED_SECONDS:
                del self._stopped[next(iter(self._stopped))]
            self._stopped.pop(key, None)
            self._stopped[key] = now  # at the end: the oldest are first
            self._order(node, job_id, Cancel(frame.attempt))

    def steer(self, stream: Stream, order: Steer) -> None:
        """Sends an order about the stream's job to its neuron. Before ``Accepted`` no neuron is
        known to have the job; when that frame comes, the job is unknown here and is stopped
        then."""
        if stream.state.node:
            self._order(stream.state.node, stream.job.id, order)

    def _order(self, node: str, job_id: str, order: Steer) -> None:
        self._send(self._bus.publish(subjects.job_control(node, job_id), codec.encode(order)))

    def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
