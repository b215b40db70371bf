"""Carries a request to a neuron and its answer back.

It owns the jobs of this gateway: the waiting lines, the hand-over, the one subscription that
receives every frame, the watch over silent neurons, and cancelling. What a frame means is decided
by ``stream``; whether a model can be served, by ``router``.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from cortex import router
from cortex.fleet import Fleet
from cortex.inbox import Inbox
from cortex.stream import Broken, Event, Started, Stranger, StreamState
from cortex.waiting import Line
from protocol import codec, subjects
from protocol.bus import Bus, BusMessage, JobLanes, QueueFull
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError
from protocol.frames import Accepted, AnyFrame, Busy, Failed, Finished
from protocol.generate import GenerateRequest
from protocol.job import Cancel, Job, Ping, Priority, Steer
from protocol.names import new_job_id

log = logging.getLogger("dispatch")

WATCH_EVERY_SECONDS = 0.2
PROBE_AFTER_SECONDS = 1.0
LOST_AFTER_SECONDS = 2.0
"""Silence after which a stream counts as lost; a probe is sent half-way. Neurons send a KeepAlive
every 0.5 s."""
NO_NEURON_SECONDS = 15.0
"""How long a waiting request bears a fleet in which no node has or loads its model."""
HAND_OVER_SECONDS = 5.0
"""How long a job's hand-over may fail before its request does."""
QUEUE_SECONDS = 60.0
"""How long a request may wait for a neuron, a loading model not counted."""
LOAD_SECONDS = 900.0
"""How long a request may wait for its model to load."""


class Stream:
    """One request's answer as it arrives; made by :meth:`Dispatcher.stream`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inbox: Inbox[Event] = Inbox()
        self.state = StreamState(job.attempt)
        self.heard_at = float("inf")
        """Monotonic time of the last frame; infinity before the first one."""
        self.probed = False
        self.handed_over = False
        self.taken = asyncio.Event()
        """A neuron has accepted or refused the job, or the stream is over."""


class _Patience:
    """How long one request waits: for a turn, for a loading model, for a fleet without it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._since = dict.fromkeys((router.Run, router.Wait, router.Refuse), 0.0)
        self._last = time.monotonic()

    def check(self, decision: router.Decision, is_placed: bool) -> None:
        """Adds the time since the last call to *decision*'s account; raises ``FleetError`` when
        that is exhausted."""
        now = time.monotonic()
        self._since[type(decision)] += now - self._last
        self._last = now
        spent = self._since[type(decision)]
        match decision:
            case router.Run() if spent > QUEUE_SECONDS:
                raise FleetError(
                    ErrorCode.TIMEOUT,
                    f"No neuron took the request within {QUEUE_SECONDS:.0f} s: all slots of "
                    f"{self._model} are busy. Try again, or add a node.",
                    retry_after_seconds=5,
                )
            case router.Wait() if spent > LOAD_SECONDS:
                raise FleetError(
                    ErrorCode.TIMEOUT,
                    f"{self._model} was still not loaded after {LOAD_SECONDS:.0f} s.",
                    retry_after_seconds=30,
                )
            case router.Refuse(error) if is_placed or spent > NO_NEURON_SECONDS:
                raise FleetError.of(error)


class Dispatcher:
    """All streams of this gateway."""

    def __init__(self, bus: Bus, fleet: Fleet, gateway: str) -> None:
        self._bus = bus
        self._fleet = fleet
        self._gateway = gateway
        self._lanes = JobLanes(bus)
        self._lines: dict[str, Line] = {}
        self._streams: dict[str, Stream] = {}
        self._live_gateways = 1
        self._connected_since = time.monotonic()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests that were handed over and are not finished."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(line.waiting for line in self._lines.values())

    # -- one request ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def stream(
        self, request: GenerateRequest, *, seed: int | None, priority: Priority = Priority.NORMAL
    ) -> AsyncIterator[Stream]:
        """Admits a request and yields its stream at once; leaving the block cancels it.

        Everything that can go wrong later arrives in the stream's inbox as ``Broken``; what is
        known at once raises ``FleetError``: an unknown model, a full line, no bus.
        """
        self._check_bus()
        decision = router.decide(
            request.model, self._fleet.placed(request.model), self._fleet.models()
        )
        if isinstance(decision, router.Refuse):
            raise FleetError.of(decision.error)
        line = self._line(request.model)
        line.check_room()
        stream = Stream(
            Job(
                id=new_job_id(),
                gateway=self._gateway,
                request=request,
                seed=secrets.randbits(62) if seed is None else seed,
                rendered_at=time.time(),
                priority=priority,
                deadline_ms=int(QUEUE_SECONDS * 1000),
            )
        )
        carrier = asyncio.create_task(self._carry(stream, line), name=f"job {stream.job.id}")
        try:
            yield stream
        finally:
            carrier.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await carrier
            self._streams.pop(stream.job.id, None)
            if stream.handed_over and not stream.state.is_over:
                self._in_background(self._cancel(stream))

    def _check_bus(self) -> None:
        if not self._bus.is_connected:
            raise FleetError(
                ErrorCode.BUS_UNAVAILABLE,
                "The gateway has lost its connection to NATS and is reconnecting.",
                retry_after_seconds=1,
            )

    async def _carry(self, stream: Stream, line: Line) -> None:
        """Waits for the model and the turn, hands the job over, and keeps the place in the line
        until a neuron has taken it. Ends in an event in any case."""
        try:
            await self._wait_for_turn(stream.job.request.model, line)
            try:
                await self._hand_over(stream)
                await self._wait_until_taken(stream)
            finally:
                line.leave()
        except FleetError as error:
            self._give_up(stream, error)
        except Exception:
            log.exception("job %s", stream.job.id)
            internal = FleetError(ErrorCode.INTERNAL, "The gateway failed; see its log.")
            self._give_up(stream, internal)

    async def _wait_for_turn(self, model: str, line: Line) -> None:
        """Returns with a place in the line; the time in which the model loads is not counted
        against the queue's bound."""
        turn = asyncio.create_task(line.turn(), name=f"turn for {model}")
        clock = _Patience(model)
        try:
            while True:
                await asyncio.wait([turn], timeout=0.5)
                if turn.done():
                    return turn.result()
                placed = self._fleet.placed(model)
                clock.check(router.decide(model, placed, self._fleet.models()), bool(placed))
        finally:
            if not turn.done():
                turn.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await turn

    async def _hand_over(self, stream: Stream) -> None:
        job = stream.job
        model = job.request.model
        self._check_bus()
        self._streams[job.id] = stream
        stream.handed_over = True
        data = codec.encode(job)
        # JetStream needs a moment after a restart. A repetition of the same message id within the
        # stream's window is no second job, so a publish without confirmation may be repeated.
        deadline = time.monotonic() + HAND_OVER_SECONDS
        while time.monotonic() < deadline:
            if await self.provision(model) and await self._publish(job, data):
                return
            await asyncio.sleep(0.2)
        raise FleetError(
            ErrorCode.BUS_UNAVAILABLE,
            f"NATS has not stored the job within {HAND_OVER_SECONDS:.0f} s.",
            retry_after_seconds=2,
        )

    async def _publish(self, job: Job, data: bytes) -> bool:
        try:
            return await self._lanes.publish(
                data,
                model=job.request.model,
                priority=job.priority,
                message_id=f"{job.id}.{job.attempt}",
                ttl_seconds=int(QUEUE_SECONDS) + 5,
            )
        except QueueFull:
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"The hand-over queue of {job.request.model} is full. Try again shortly.",
                retry_after_seconds=2,
            ) from None
        except BusOverflow as error:
            raise FleetError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"The request takes {error.size} bytes on the bus, more than its limit of "
                f"{error.limit}. Send less text.",
            ) from None

    async def _wait_until_taken(self, stream: Stream) -> None:
        """Until Accepted or the end; meanwhile a fleet without the model is noticed."""
        model = stream.job.request.model
        clock = _Patience(model)
        while not stream.taken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await stream.taken.wait()
            placed = self._fleet.placed(model)
            clock.check(router.decide(model, placed, self._fleet.models()), bool(placed))

    # -- frames --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receives frames and watches over silence until cancelled."""

        async def reconnected() -> None:
            self._connected_since = time.monotonic()
            self._lanes.forget()

        forget_reconnect = self._bus.on_reconnect(reconnected)
        replies = await self._bus.subscribe(
            subjects.all_replies(self._gateway), self._frame_arrived
        )
        try:
            while True:
                before = time.monotonic()
                await asyncio.sleep(WATCH_EVERY_SECONDS)
                lag = time.monotonic() - before - WATCH_EVERY_SECONDS
                self._watch(lag)
        finally:
            forget_reconnect()
            await replies.stop()

    async def provision(self, model: str) -> bool:
        """Makes sure that a model's lanes exist; False when JetStream does not answer."""
        return await self._lanes.provision() and await self._lanes.provision_model(model)

    def update_room(self, live_gateways: int) -> None:
        """The fleet changed: what can be handed over now?"""
        self._live_gateways = live_gateways
        for model, line in self._lines.items():
            self._set_room(model, line)

    def _set_room(self, model: str, line: Line) -> None:
        if self._fleet.ready(model):
            line.open(self._fleet.free_slots(model), self._live_gateways)
        else:
            line.shut()

    def _frame_arrived(self, message: BusMessage) -> None:
        try:
            frame = codec.read_frame(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored a frame: %s", error)
            return
        job_id = subjects.last_token(message.subject)
        if isinstance(frame, Accepted | Failed) and frame.ack:
            self._in_background(self._lanes.acknowledge(frame.ack))
        stream = self._streams.get(job_id)
        if stream is None:
            self._stop_stranger(job_id, frame, frame.instance)
            return
        event = stream.state.receive(frame)
        if frame.instance == stream.state.instance:
            stream.heard_at = time.monotonic()
            stream.probed = False
        if isinstance(event, Stranger):
            self._stop_stranger(job_id, frame, event.instance)
        elif event is not None:
            if isinstance(event, Broken) and not isinstance(frame, Failed):
                self._in_background(self._cancel(stream))  # it goes on for nobody
            self._deliver(stream, event)

    def _deliver(self, stream: Stream, event: Event) -> None:
        if isinstance(event, Started | Broken):
            stream.taken.set()
        stream.inbox.put(event)

    def _give_up(self, stream: Stream, error: FleetError) -> None:
        if not stream.state.is_over:
            stream.state.is_over = True
            self._in_background(self._cancel(stream))
            self._deliver(stream, Broken(error.error))

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
                self._in_background(self._cancel(stream))
                self._deliver(stream, stream.state.silence(silence))
            elif silence > PROBE_AFTER_SECONDS and not stream.probed:
                stream.probed = True
                self._in_background(self._steer(stream, Ping(stream.job.attempt)))

    # -- steering ------------------------------------------------------------------------------

    def _stop_stranger(self, job_id: str, frame: AnyFrame, instance: str) -> None:
        """Somebody works on a job that nobody waits for: a cancelled one, or a second delivery."""
        node = frame.node if isinstance(frame, Accepted) else self._fleet.node_of_instance(instance)
        if node and not isinstance(frame, Finished | Failed | Busy):
            cancel = codec.encode(Cancel(frame.attempt))
            self._in_background(self._bus.publish(subjects.steer(node, job_id), cancel))

    async def _cancel(self, stream: Stream) -> None:
        await self._steer(stream, Cancel(stream.job.attempt))

    async def _steer(self, stream: Stream, order: Steer) -> None:
        """Before Accepted nobody is known to have the job: the order waits for that frame."""
        if stream.state.node:
            subject = subjects.steer(stream.state.node, stream.job.id)
            await self._bus.publish(subject, codec.encode(order))

    # -- plumbing ------------------------------------------------------------------------------

    def _line(self, model: str) -> Line:
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = Line(model)
            self._set_room(model, line)
        return line

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
