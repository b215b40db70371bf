"""Sees one request through: when a neuron dies, freezes or leaves, another one continues.

An attempt is one neuron's try. When it ends before the answer does, the next one gets the tokens so
far and continues with the next token; the client sees a pause. The first attempt goes through the
queue and the stream JOBS. Later ones skip the queue: they are offered to one neuron directly while
any has room, and otherwise go through the stream at high priority.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from cortex.dispatch import refusals, router
from cortex.dispatch.hand_over import StoredJob
from cortex.dispatch.receiver import Receiver, Stream
from cortex.dispatch.wait_budget import WaitBudget
from cortex.fleet.state import Fleet, Placed
from cortex.streams.events import Move
from cortex.streams.lifecycle import ATTEMPT, AttemptPhase, AttemptStep, Lifecycle
from protocol import codec, subjects
from protocol.bus import Bus
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.job import Cancel, Job, Priority
from protocol.runtime.waiting import wait_at_most

log = logging.getLogger("attempts")

DIRECT_SECONDS = 0.25
"""How long a neuron may take to answer on the direct lane, beside the time to read the job's
text."""
_BYTES_PER_SECOND = 500_000
_LOOK_AGAIN_SECONDS = 0.25
_PAUSE_SECONDS = 0.1
"""The pause between two rounds of asking."""
SLOWER_IF_NEAR = 3.0
"""A node with the prompt's prefix is preferred until it is this many times slower than the
quickest free node."""
_QUICK_STEP_SECONDS = 0.002
MOVES_AT_ONCE = 2
"""How many streams may leave a node that still sends heartbeats at once: if it is only slow, the
rest stays."""
DEATHS = 2
"""After this many attempts that ended with their engine and gave no token, the request is at
fault."""

BUGS = 3
"""Rounds in which neurons answered that they failed; trying more often would not help."""

HANDED_OVER = 3
"""How often a job that was lost from the stream is stored again."""

HandOver = Callable[[Job], Awaitable[StoredJob]]
Decide = Callable[[str], router.Decision]
"""Decides for a model, by its name."""


class LeavingSources:
    """Bounds how many streams leave one living node at once."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._leaving: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def leaving(self, node: str) -> AsyncIterator[None]:
        """Moves a stream away from *node* during the block."""
        while self._leaving[node] >= MOVES_AT_ONCE and node in self._fleet.alive_names():
            await self._fleet.wait_for_change(_PAUSE_SECONDS / 2)
        self._leaving[node] += 1
        try:
            yield
        finally:
            self._leaving[node] -= 1


class Attempts:
    """The attempts of one request, one after the other."""

    def __init__(
        self,
        stream: Stream,
        *,
        bus: Bus,
        fleet: Fleet,
        receiver: Receiver,
        sources: LeavingSources,
        hand_over: HandOver,
        decide: Decide,
    ) -> None:
        self._stream = stream
        self._bus = bus
        self._fleet = fleet
        self._receiver = receiver
        self._sources = sources
        self._hand_over = hand_over
        self._decide = decide
        self._model = stream.job.request.model
        self._deaths = 0
        self._life = Lifecycle(ATTEMPT, AttemptPhase.QUEUED)

    async def begin(self, near: str) -> None:
        """Makes the first attempt, until a neuron has taken or refused the job. *near* may have
        the prompt's prefix in its cache, and is asked before the others; empty when no node has."""
        job = self._stream.job
        if self._is_worth_asking(near):
            self._stream.record.was_near = await self._offer(near, job)
            if self._stream.record.was_near:
                return
            job = self._next_job(job.priority)
        stored = await self._hand_over_to_all(job)
        await self._until_taken(stored, WaitBudget(self._model, time.monotonic), is_patient=False)

    def _is_worth_asking(self, near: str) -> bool:
        """Whether *near* is ready, and fast enough that its cache saves more time than its speed
        costs. Only the node itself knows whether it has room: heartbeats are half a second old."""
        loads = {p.record.node: p.load for p in self._fleet.ready(self._model)}
        if near not in loads:
            return False
        own = loads[near].step_seconds
        steps = (load.step_seconds for load in loads.values() if load.free_slots)
        quickest = min((seconds for seconds in steps if seconds), default=own)
        return own <= SLOWER_IF_NEAR * max(quickest, _QUICK_STEP_SECONDS)

    async def taken_up(self, node: str) -> None:
        """Continues a stream that already runs on *node*, which has been asked for it."""
        self._life.step(AttemptStep.OFFER)
        await wait_at_most(self._stream.turn, DIRECT_SECONDS * 4)
        self._settle()
        if not self._stream.turn.is_set():
            why = f"Node {node} did not answer."
            self._stream.end_attempt(Move(WireError(ErrorCode.STREAM_LOST, why)))
        await self.go_on()

    async def go_on(self) -> None:
        """Makes further attempts until the answer is complete; raises ``FleetError`` when no
        node can continue."""
        stream = self._stream
        while True:
            await stream.turn.wait()
            stream.turn.clear()
            if stream.move is None:
                continue
            if self._life.phase is AttemptPhase.ACCEPTED:
                self._life.step(AttemptStep.LOSE)
            await self._move(stream.move)

    async def _move(self, move: Move) -> None:
        """Moves the stream, until another neuron has the job."""
        stream = self._stream
        left = stream.state.node
        self._blame(move)
        log.warning(
            "request %s moves away from %s after %d tokens, %d of them in attempt %d: %s",
            stream.job.id,
            left or "the queue",
            stream.state.next_index,
            stream.state.new_tokens,
            stream.job.attempt,
            move.error.message,
        )
        budget = WaitBudget(self._model, time.monotonic)
        async with self._sources.leaving(left):
            self._receiver.steer(stream, Cancel(stream.job.attempt))
            for rounds in itertools.count(1):
                if stream.state.is_over:  # its end came while nobody was being asked
                    return
                if await self._place(left, budget):
                    break
                refused = stream.move
                if refused and refused.error.code is ErrorCode.INTERNAL and rounds >= BUGS:
                    raise FleetError.of(refused.error)
                await asyncio.sleep(_PAUSE_SECONDS)
                self._check(budget, is_patient=True)
        if left:
            stream.record.moved(exact=stream.state.is_exact)
            stream.record.node = stream.state.node

    async def _place(self, left: str, budget: WaitBudget) -> bool:
        """Tries every neuron with room once, and then the stream JOBS."""
        for placed in self._candidates(left):
            if await self._offer(placed.record.node, self._next_job(self._stream.job.priority)):
                return True
        if not self._fleet.ready(self._model):
            return False
        try:
            stored = await self._hand_over_to_all(self._next_job(Priority.HIGH))
        except FleetError as error:
            if error.error.code is ErrorCode.BUS_UNAVAILABLE:
                return False  # a stream bears that longer than a new request
            raise
        return await self._until_taken(stored, budget, is_patient=True)

    def _candidates(self, left: str) -> list[Placed]:
        """Nodes with room: first those that compute the same to the bit, then the fastest."""
        first = self._stream.state.first
        same = (first.revision, first.numerics) if first else ("", "")

        def rank(placed: Placed) -> tuple[bool, float, int]:
            record, load = placed
            is_other = (record.revision, record.numerics) != same
            return is_other, load.step_seconds, -load.free_slots

        ready = [p for p in self._fleet.ready(self._model) if p.load.free_slots > 0]
        return sorted((p for p in ready if p.record.node != left), key=rank)

    async def _offer(self, node: str, job: Job) -> bool:
        """Offers the job to one neuron directly; True when it has taken it."""
        self._life.step(AttemptStep.OFFER)
        data = codec.encode(job)
        try:
            await self._bus.publish(subjects.run(self._model, node), data)
        except BusOverflow as error:
            raise FleetError.of(refusals.job_is_too_large(error.size, error.limit)) from None
        await wait_at_most(self._stream.turn, DIRECT_SECONDS + len(data) / _BYTES_PER_SECOND)
        return self._settle()

    async def _hand_over_to_all(self, job: Job) -> StoredJob:
        """Stores the job for any neuron to take."""
        self._life.step(AttemptStep.HAND_OVER)
        try:
            return await self._hand_over(job)
        except FleetError:
            self._life.step(AttemptStep.REFUSE)
            raise

    async def _until_taken(
        self, stored: StoredJob, budget: WaitBudget, *, is_patient: bool
    ) -> bool:
        """Waits until a neuron has accepted or refused the job; True when it has taken it. A job
        that is lost from the stream meanwhile is stored again."""
        times = 1
        while not self._stream.turn.is_set():
            await wait_at_most(self._stream.turn, _LOOK_AGAIN_SECONDS)
            self._check(budget, is_patient=is_patient)
            if stored.is_lost and not self._stream.turn.is_set():
                if times == HANDED_OVER:
                    self._life.step(AttemptStep.REFUSE)
                    raise FleetError.of(refusals.nobody_reads_it(self._model, times))
                log.warning("request %s was lost from the stream; again", self._stream.job.id)
                try:
                    stored = await self._hand_over(self._stream.job)
                    times += 1
                except FleetError as error:
                    if not is_patient or error.error.code is not ErrorCode.BUS_UNAVAILABLE:
                        raise
        return self._settle()

    def _settle(self) -> bool:
        """Notes how the present attempt was received; True when a neuron has it, or nobody needs
        one any more."""
        is_taken = bool(self._stream.state.instance) or self._stream.state.is_over
        self._life.step(AttemptStep.ACCEPT if is_taken else AttemptStep.REFUSE)
        return is_taken

    def _check(self, budget: WaitBudget, *, is_patient: bool) -> None:
        is_own_fault = self._stream.waits_for_siblings
        budget.check(self._decide(self._model), is_patient=is_patient, is_own_fault=is_own_fault)

    # -- attempts ------------------------------------------------------------------------------

    def _next_job(self, priority: Priority) -> Job:
        """Begins the next attempt, whose number every frame must carry from now on."""
        stream = self._stream
        job, first = stream.job, stream.state.first
        request = job.request
        if first is not None:  # a node with a longer context gives no longer answer
            sampling = msgspec.structs.replace(request.sampling, max_tokens=first.max_tokens)
            request = msgspec.structs.replace(request, sampling=sampling)
        job = msgspec.structs.replace(
            job,
            attempt=job.attempt + 1,
            request=request,
            tokens_so_far=tuple(stream.state.tokens),
            prompt_hash=first.prompt_hash if first else "",
            revision=first.revision if first else "",
            suspect=self._deaths > 0,
            priority=priority,
        )
        stream.begin_attempt(job)
        return job

    def _blame(self, move: Move) -> None:
        state = self._stream.state
        if state.new_tokens:
            self._deaths = 0
        elif move.is_death and state.instance and not state.was_held:
            self._deaths += 1
        if self._deaths >= DEATHS:
            poison = refusals.engines_die_of_it(self._deaths, state.node, move.error.message)
            raise FleetError.of(poison)
