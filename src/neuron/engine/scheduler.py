"""What every step computes: pure bookkeeping over sequences and blocks; no torch, no clock.

There are no phases. Each step first gives one token to every sequence that lacks only one
(decode), then shares what is left of the budget among the others (prefill) by water-filling: all
get the same, and what a short prompt does not need goes to the longer ones. So a short prompt
that arrives in the middle of a long prefill overtakes it. While anyone decodes, prefill is cut to
a smaller budget that bounds the time between the tokens of running streams.

Admission is first come, first served, and reserves the blocks for the longest answer, so a
running sequence never has to stop for lack of cache.
"""

from collections import deque
from dataclasses import dataclass

from neuron.engine.blocks import BlockPool, blocks_for
from neuron.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler's bounds; sequences and tokens."""

    max_running: int
    max_queued: int
    max_step_tokens: int
    """Tokens of a step in which nobody decodes."""
    prefill_chunk_tokens: int
    """Prefill tokens of a step in which somebody does."""

    def __post_init__(self) -> None:
        # One token for every running sequence is what keeps all of them moving.
        assert self.max_running >= 1
        assert self.max_queued >= 0
        assert self.max_step_tokens >= self.max_running
        assert self.prefill_chunk_tokens >= self.max_running


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
class Plan:
    """One step: decode rows first, then prefill chunks in order of admission."""

    chunks: list[Chunk]

    @property
    def tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


class Scheduler:
    """Holds the waiting and the running sequences."""

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self._pool = pool
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of admission

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

    def plan(self) -> Plan:
        """Admits whom it can and decides the next step; empty only without work."""
        self._admit()
        decode: list[Chunk] = []
        prefill: list[Sequence] = []
        for sequence in self._running.values():
            if sequence.remaining == 1:
                decode.append(Chunk(sequence, sequence.computed, 1))
            else:
                prefill.append(sequence)
        budget = self.limits.max_step_tokens - len(decode)
        if decode:
            budget = min(budget, self.limits.prefill_chunk_tokens)
        shares = water_fill([sequence.remaining for sequence in prefill], budget)
        chunks = [
            Chunk(sequence, sequence.computed, share)
            for sequence, share in zip(prefill, shares, strict=True)
            if share
        ]
        return Plan(decode + chunks)

    def commit(self, plan: Plan) -> None:
        """Records that *plan* has been computed; sampled tokens are appended by the caller."""
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.start + chunk.count

    def remove(self, sequence_id: int) -> Sequence | None:
        """Takes a sequence out, finished or aborted, and frees its blocks; None if unknown."""
        sequence = self._running.pop(sequence_id, None)
        if sequence is not None:
            self._pool.give_back(sequence.blocks)
            sequence.blocks, sequence.first_block = [], None
            return sequence
        for sequence in self._waiting:
            if sequence.id == sequence_id:
                self._waiting.remove(sequence)
                return sequence
        return None

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.limits.max_running:
            sequence = self._waiting[0]
            need = blocks_for(sequence.limit)
            if need > self._pool.free:
                return
            self._waiting.popleft()
            sequence.blocks = self._pool.take(need)
            first, last = sequence.blocks[0], sequence.blocks[-1]
            sequence.first_block = first if last - first == need - 1 else None
            self._running[sequence.id] = sequence


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
