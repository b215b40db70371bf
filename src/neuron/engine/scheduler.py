"""What every step computes: pure bookkeeping over sequences and blocks; no torch, no clock.

There are no phases. Each step first gives one token to every sequence that lacks only one
(decode), then shares what is left of the budget among the others (prefill) by water-filling: all
get the same, and what a short prompt does not need goes to the longer ones. So a short prompt
that arrives in the middle of a long prefill overtakes it. While anyone decodes, prefill is cut to
a smaller budget that bounds the time between the tokens of running streams, and a token far into
a long prompt counts for more, as its attention costs more.

Nobody gets much less than a block, because every chunk reads its whole context: only as many
sequences take part in a step as the budget has blocks for. The oldest always does, on top of the
budget where a block of it costs more than that.

Admission is first come, first served, when the free blocks hold the prompt and one more block for
every running sequence. A sequence whose beginning another one is computing waits for it and takes
it from the cache. When the blocks run out, the youngest sequence gives up its own and waits at the
front: what it had computed mostly comes back from the cache, the rest is computed again, and its
tokens do not change.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, Key, blocks_for
from neuron.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The scheduler's bounds; sequences and tokens."""

    max_running: int
    max_queued: int
    max_step_tokens: int
    """Tokens of a step in which nobody decodes."""
    prefill_chunk_tokens: int
    """Prefill tokens of a step in which somebody does."""
    context_weight: float = 0.0
    """What a token of context adds to the cost of computing a token, in tokens: 1 / 4,000, say,
    when attention over 4,000 tokens costs as much as everything else."""

    def __post_init__(self) -> None:
        # One token for every running sequence is what keeps all of them moving.
        assert self.max_running >= 1
        assert self.max_queued >= 0
        assert self.max_step_tokens >= self.max_running
        assert self.prefill_chunk_tokens >= self.max_running
        assert self.context_weight >= 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens ``start … start + count`` of one sequence, to be computed in a step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether it catches up, so that the step yields the sequence's next token."""
        return self.start + self.count == self.sequence.total


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: decode rows first, then prefill chunks in order of admission."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Blocks whose contents to copy before anything is computed, (source, target), in order."""

    @property
    def tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


class Scheduler:
    """Holds the waiting and the running sequences."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self.limits = limits
        self.preemptions = 0
        """Since the start."""
        self._pool = pool
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._coming: dict[Key, int] = {}  # key → the running sequence that will publish it
        self._copies: list[tuple[int, int]] = []

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether another sequence would exceed the bounded queue."""
        room = self.limits.max_running + self.limits.max_queued
        return len(self._running) + len(self._waiting) >= room

    def add(self, sequence: Sequence) -> None:
        """Queues *sequence*; the caller has checked :attr:`is_full`, and that the pool as a whole
        can hold it."""
        assert not self.is_full
        assert blocks_for(sequence.limit) <= self._pool.total
        self._waiting.append(sequence)

    def plan(self) -> StepPlan:
        """Admits whom it can and decides the next step; empty only without work."""
        self._grow()
        self._admit()
        decode: list[Chunk] = []
        prefill: list[Sequence] = []
        for sequence in self._running.values():
            if sequence.remaining == 1:
                decode.append(Chunk(sequence, sequence.computed, 1))
            else:
                prefill.append(sequence)
        copies, self._copies = self._copies, []
        return StepPlan(decode + self._share(prefill, len(decode)), copies)

    def commit(self, plan: StepPlan) -> None:
        """Records that *plan* has been computed; sampled tokens are appended by the caller."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.start + chunk.count
            self._publish(chunk.sequence)

    def remove(self, sequence_id: int) -> Sequence | None:
        """Takes a sequence out, finished or aborted, and frees its blocks; None if unknown."""
        sequence = self._running.get(sequence_id)
        if sequence is not None:
            self._leave(sequence)
            return sequence
        for sequence in self._waiting:
            if sequence.id == sequence_id:
                self._waiting.remove(sequence)
                return sequence
        return None

    def overdue(self, now: float) -> list[Sequence]:
        """The sequences whose deadline has passed; they stay until they are removed."""
        everyone = (*self._running.values(), *self._waiting)
        return [s for s in everyone if s.deadline is not None and s.deadline <= now]

    # -- blocks ------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Gives every running sequence the blocks for its tokens; the oldest first."""
        for sequence in list(self._running.values()):
            if sequence.id not in self._running:
                continue  # preempted for an older one
            while len(sequence.blocks) < blocks_for(sequence.total):
                if not self._pool.free_blocks:
                    youngest = next(reversed(self._running.values()))
                    self._preempt(youngest)
                    if youngest is sequence:
                        break
                    continue
                sequence.blocks.append(self._pool.allocate(sequence.blocks))

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence.id]
        self._pool.free(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.published = [], 0, 0
        for key in sequence.keys:
            if self._coming.get(key) == sequence.id:
                del self._coming[key]

    def _publish(self, sequence: Sequence) -> None:
        """Lets others find the blocks that have become full."""
        full = sequence.computed // BLOCK_TOKENS
        if full == sequence.published:
            return
        keys = sequence.full_keys()
        for index in range(sequence.published, full):
            self._pool.cache(sequence.blocks[index], keys[index], root=index == 0)
            if self._coming.get(keys[index]) == sequence.id:
                del self._coming[keys[index]]
        sequence.published = full

    # -- admission ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        held: list[Sequence] = []  # they wait for a beginning that is being computed
        while self._waiting and len(self._running) < self.limits.max_running:
            sequence = self._waiting.popleft()
            keys = self._reusable_keys(sequence)
            found = self._pool.match(keys)
            if len(found) < len(keys) and keys[len(found)] in self._coming:
                held.append(sequence)
                continue
            need = self._pool.need(found, blocks_for(sequence.total))
            if need + len(self._running) > self._pool.free_blocks:
                self._waiting.appendleft(sequence)
                break
            self._start(sequence, found)
        self._waiting.extendleft(reversed(held))

    def _reusable_keys(self, sequence: Sequence) -> list[Key]:
        """The keys to look for: never of the last token, whose logits are needed."""
        if not sequence.uses_cache:
            return []
        return sequence.full_keys()[: (sequence.total - 1) // BLOCK_TOKENS]

    def _start(self, sequence: Sequence, found: list[int]) -> None:
        adopted = self._pool.reuse(found)
        self._copies += adopted.copies
        sequence.blocks = blocks = adopted.blocks
        sequence.computed = len(blocks) * BLOCK_TOKENS
        sequence.published = len(blocks)
        if not sequence.admitted:
            sequence.admitted = True
            sequence.cached = min(sequence.computed, sequence.prompt_tokens)
        wanted = blocks_for(sequence.total)
        while len(blocks) < wanted:
            blocks.append(self._pool.allocate(blocks, wanted - len(blocks)))
        self._running[sequence.id] = sequence
        for key in sequence.full_keys()[len(found) :]:
            self._coming.setdefault(key, sequence.id)

    # -- sharing the budget ------------------------------------------------------------------------

    def _share(self, prefill: list[Sequence], decoding: int) -> list[Chunk]:
        budget, weight = self.limits.max_step_tokens - decoding, 0.0
        if decoding:
            budget = min(budget, self.limits.prefill_chunk_tokens)
            weight = self.limits.context_weight
        wants = [_Want(s, 1 + weight * s.computed, min(BLOCK_TOKENS, budget)) for s in prefill]
        chunks = []
        if wants and wants[0].least > budget:
            oldest = wants.pop(0)
            chunks.append(oldest.chunk(oldest.least))
            budget -= chunks[0].count
            served = _fitting(wants, budget)
        else:
            served = wants[:1] + _fitting(wants[1:], budget - sum(w.least for w in wants[:1]))
        shares = water_fill([want.all for want in served], budget)
        return chunks + [want.chunk(share) for want, share in zip(served, shares, strict=True)]


@dataclass(frozen=True, slots=True)
class _Want:
    """What a sequence's tokens cost in a step; costs in tokens without a context."""

    sequence: Sequence
    token: float
    """One of them."""
    piece: int
    """How many should be computed at once, at least."""

    @property
    def all(self) -> int:
        return math.ceil(self.sequence.remaining * self.token)

    @property
    def least(self) -> int:
        """The least that should be computed at once."""
        return math.ceil(min(self.sequence.remaining, self.piece) * self.token)

    def chunk(self, share: int) -> Chunk:
        count = min(self.sequence.remaining, max(1, int(share / self.token)))
        return Chunk(self.sequence, self.sequence.computed, count)


def _fitting(wants: list[_Want], budget: int) -> list[_Want]:
    """Those whose next blocks fit into *budget* together, the cheapest first; in the given order.
    Shares smaller than a block would read many contexts for little each."""
    chosen = []
    for index in sorted(range(len(wants)), key=lambda index: wants[index].least):
        budget -= wants[index].least
        if budget < 0:
            break
        chosen.append(index)
    return [wants[index] for index in sorted(chosen)]


def water_fill(needs: list[int], budget: int) -> list[int]:
    """Shares *budget* so that nobody gets more than needed and the others get the same.

    What cannot be divided goes to the first in the list, one each; the whole budget is spent
    unless all needs are met. (Max-min fairness, Bertsekas & Gallager, *Data Networks*, 6.5.2.)
    """
    shares = [0] * len(needs)
    order = sorted(range(len(needs)), key=needs.__getitem__)  # stable: ties in the given order
    for position, index in enumerate(order):
        left = len(order) - position
        level, spare = divmod(budget, left)
        if needs[index] <= level:
            shares[index] = needs[index]
            budget -= needs[index]
            continue
        for rank, other in enumerate(sorted(order[position:])):
            shares[other] = level + (rank < spare)
        break
    return shares
