"""Decides what every step computes. Pure bookkeeping over sequences and blocks; no torch, no clock.

There are no phases. Each step first gives one token to every sequence that needs only one (decode),
then shares the rest of the budget among the others (prefill) by water-filling: all get the same
share, and what a short prompt does not need goes to the longer ones. A short prompt that arrives
during a long prefill therefore overtakes it. While any sequence decodes, prefill is limited to a
smaller budget that bounds the time between tokens of running streams, and a token far into a long
prompt counts for more, because its attention costs more.

No sequence gets much less than a block, because every chunk reads its whole context: a step
includes only as many sequences as its budget has blocks for. The oldest always takes part, even
where one block of it costs more than the budget.

Admission is first come, first served, when the free blocks hold the prompt and one more block for
every running sequence. A sequence whose prefix another one is computing waits and then reuses it
from the cache. When the blocks run out, the youngest sequence is preempted and waits at the front
of the queue: most of what it had computed comes back from the cache, the rest is recomputed, and
its tokens do not change.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, Key, blocks_for
from neuron.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The scheduler's limits, in sequences and tokens."""

    max_running: int
    max_queued: int
    max_step_tokens: int
    """Token budget of a step in which no sequence decodes."""
    prefill_chunk_tokens: int
    """Prefill tokens of a step in which some sequence decodes."""
    context_weight: float = 0.0
    """Cost that each token of context adds to computing a token, in tokens: for example 1 / 4,000
    when attention over 4,000 tokens costs as much as everything else."""

    def __post_init__(self) -> None:
        # One token for each running sequence is what keeps them all moving.
        assert self.max_running >= 1
        assert self.max_queued >= 0
        assert self.max_step_tokens >= self.max_running
        assert self.prefill_chunk_tokens >= self.max_running
        assert self.context_weight >= 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens ``start … start + count`` of one sequence that a step computes."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether it computes the last known token, so that the step yields the next one."""
        return self.start + self.count == self.sequence.total


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: decode rows first, then prefill chunks in order of admission."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(source, target) blocks to copy, in order, before anything is computed."""

    @property
    def tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


class Scheduler:
    """Holds the waiting and the running sequences and plans their steps."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self.limits = limits
        self.preemptions = 0
        """Sequences preempted since the engine started."""
        self._pool = pool
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._coming: dict[Key, int] = {}  # key → the running sequence that will cache it
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
        """Whether the queue has no room for another sequence."""
        room = self.limits.max_running + self.limits.max_queued
        return len(self._running) + len(self._waiting) >= room

    def add(self, sequence: Sequence) -> None:
        """Queues *sequence*.

        The caller has checked :attr:`is_full`, and that the whole pool could hold the sequence.
        """
        assert not self.is_full
        assert blocks_for(sequence.limit) <= self._pool.total
        self._waiting.append(sequence)

    def plan(self) -> StepPlan:
        """Admits the sequences that fit and plans the next step; empty only without work."""
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
        """Records that *plan* has been computed; the caller appends the sampled tokens."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.start + chunk.count
            self._publish(chunk.sequence)

    def remove(self, sequence_id: int) -> Sequence | None:
        """Removes a finished or aborted sequence and frees its blocks; None if it is unknown."""
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
        """Returns the sequences whose deadline has passed, without removing them."""
        everyone = (*self._running.values(), *self._waiting)
        return [s for s in everyone if s.deadline is not None and s.deadline <= now]

    # -- blocks ------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Allocates the blocks that each running sequence needs, the oldest sequence first."""
        for sequence in list(self._running.values()):
            if sequence.id not in self._running:
                continue  # preempted in favour of an older one
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
        """Caches the blocks that have become full, so that other sequences find them."""
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
        held: list[Sequence] = []  # these wait for a prefix that is being computed
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
        """The keys to look up, without the last token's block: that token's logits are needed."""
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
    """The cost of a sequence's tokens in a step, in units of a token without context."""

    sequence: Sequence
    token: float
    """Cost of one token."""
    piece: int
    """Fewest tokens that should be computed at once."""

    @property
    def all(self) -> int:
        return math.ceil(self.sequence.remaining * self.token)

    @property
    def least(self) -> int:
        """Cost of the fewest tokens that should be computed at once."""
        return math.ceil(min(self.sequence.remaining, self.piece) * self.token)

    def chunk(self, share: int) -> Chunk:
        count = min(self.sequence.remaining, max(1, int(share / self.token)))
        return Chunk(self.sequence, self.sequence.computed, count)


def _fitting(wants: list[_Want], budget: int) -> list[_Want]:
    """The sequences whose next blocks fit into *budget* together, cheapest first; in given order.

    Shares smaller than a block would read many contexts for little progress each.
    """
    chosen = []
    for index in sorted(range(len(wants)), key=lambda index: wants[index].least):
        budget -= wants[index].least
        if budget < 0:
            break
        chosen.append(index)
    return [wants[index] for index in sorted(chosen)]


def water_fill(needs: list[int], budget: int) -> list[int]:
    """Shares *budget* so that nobody gets more than needed and all others get the same.

    An indivisible remainder goes to the first in the list, one each; the whole budget is spent
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
