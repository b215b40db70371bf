"""Deficit round robin: whose turn it is, whatever requests cost and however many wait."""

import itertools
import time
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from cortex.dispatch.admission import LONGEST_ANSWER, USUAL_ANSWER, estimated_tokens
from cortex.dispatch.fair_queue import QUANTUM, FairQueue
from protocol.generate import GenerateRequest, Sampling
from protocol.job import Priority

numbers = itertools.count()


class One(NamedTuple):
    tenant: str
    cost: int = 1
    priority: Priority = Priority.NORMAL
    number: int = 0


def made(tenant: str, cost: int) -> One:
    return One(tenant, cost, number=next(numbers))


class RoundByRound:
    """The same, as the paper has it: one allowance after the other."""

    def __init__(self) -> None:
        self.ring: dict[str, list[One]] = {}
        self.deficits: dict[str, int] = {}

    def add(self, one: One) -> None:
        self.ring.setdefault(one.tenant, []).append(one)
        self.deficits.setdefault(one.tenant, 0)

    def take(self, barred: set[str]) -> One | None:
        allowed = [tenant for tenant in self.ring if tenant not in barred]
        while allowed:
            for tenant in allowed:
                one = self.ring[tenant][0]
                if self.deficits[tenant] >= one.cost:
                    self.deficits[tenant] -= one.cost
                    self.ring[tenant].pop(0)
                    if not self.ring[tenant]:
                        del self.ring[tenant], self.deficits[tenant]
                    return one
                self.deficits[tenant] += QUANTUM
                self.ring[tenant] = self.ring.pop(tenant)
        return None


TENANTS = st.sampled_from("abcd")


@given(
    st.lists(
        st.one_of(
            st.tuples(TENANTS, st.integers(1, 9 * QUANTUM)),
            st.sets(TENANTS, max_size=3),
        ),
        max_size=60,
    )
)
def test_rounds_made_up_for_at_once_are_the_same(steps: list[tuple[str, int] | set[str]]) -> None:
    ours: FairQueue[One] = FairQueue()
    theirs = RoundByRound()
    for step in (*steps, set(), set(), set(), set(), set(), set()):
        if isinstance(step, tuple):
            one = made(*step)
            ours.add(one)
            theirs.add(one)
        else:
            assert ours.take(lambda tenant: tenant not in step) == theirs.take(step)  # noqa: B023


def test_no_cost_takes_time() -> None:
    queue: FairQueue[One] = FairQueue()
    for number in range(256):
        queue.add(made(f"t{number}", 2**31 - 1 - number))
    began = time.process_time()
    while queue.take(lambda _: True):
        pass
    assert time.process_time() - began < 0.5
    assert len(queue) == 0


def test_many_tenants_take_no_time() -> None:
    queue: FairQueue[One] = FairQueue()
    for number in range(4_000):
        queue.add(made(f"t{number}", 500))
    began = time.process_time()
    while queue.take(lambda _: True):
        pass
    assert time.process_time() - began < 0.5


def test_an_answer_without_end_costs_as_much_as_a_long_one() -> None:
    def cost(max_tokens: int | None) -> int:
        sampling = Sampling(max_tokens=max_tokens)
        return estimated_tokens(GenerateRequest("m", prompt="a" * 400, sampling=sampling))

    assert cost(100) == 200
    assert cost(None) == 100 + USUAL_ANSWER
    assert cost(2**31 - 1) == 100 + LONGEST_ANSWER
