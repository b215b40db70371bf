"""The scheduler's promises, on random schedules of add, abort and finish."""

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.blocks import BlockPool
from neuron.engine.scheduler import Scheduler, StepPlan, water_fill
from neuron.engine.sequence import Sequence
from tests.support.properties import examples
from tests.support.scheduling import run, scheduler, sequence


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(0, 600))
def test_water_filling(needs: list[int], budget: int) -> None:
    shares = water_fill(needs, budget)
    assert all(0 <= share <= need for share, need in zip(shares, needs, strict=True))
    assert sum(shares) == min(budget, sum(needs))
    unmet = [share for share, need in zip(shares, needs, strict=True) if share < need]
    if unmet:
        assert max(unmet) - min(unmet) <= 1
        assert unmet == sorted(unmet, reverse=True), "the remainder goes to the first"
        assert max(shares) <= max(unmet) + 1 if unmet else True


def check(plan: StepPlan, s: Scheduler, pool: BlockPool, everyone: Collection[Sequence]) -> None:
    counts = [chunk.count for chunk in plan.chunks]
    decoding = [chunk.sequence.remaining == 1 for chunk in plan.chunks]
    assert decoding == sorted(decoding, reverse=True), "decode rows come first"
    assert plan.tokens <= 48
    if any(decoding):
        assert sum(counts) - sum(decoding) <= 16
    owned = {block for one in everyone for block in one.blocks}
    assert len(owned) == pool.total - pool.free_blocks
    running = {one.id for one in everyone if one.blocks}
    assert len(running) == s.running
    served = {chunk.sequence.id for chunk in plan.chunks}
    assert served <= running
    for one in s._running.values():
        assert one.id in served or one.remaining > 1, "all that decode progress"
    prefill = [one.id for one in s._running.values() if one.remaining > 1]
    assert not prefill or prefill[0] in served, "and so does the oldest that does not yet"
    written: set[int] = set()
    for chunk in plan.chunks:
        one = chunk.sequence
        assert chunk.start == one.computed
        end = chunk.start + chunk.count
        assert end <= len(one.blocks) * 16
        for block in one.blocks[chunk.start // 16 : -(-end // 16)]:
            users = sum(block in other.blocks for other in everyone)
            assert users == 1, "a block that is written belongs to one sequence"
            assert block not in written
            written.add(block)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 600), st.integers(1, 30)),
        st.tuples(st.just("abort"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@examples(300)
@given(actions, st.integers(4, 9), st.integers(10, 90), st.integers(1, 3))
def test_random_schedules(
    actions: list[tuple[str, int, int]], max_running: int, blocks: int, beginnings: int
) -> None:
    """Prompts with few different beginnings, so that blocks are shared, copied and evicted."""
    s, pool = scheduler(running=max_running, queued=10, step=48, chunk=16, blocks=blocks)
    open_: dict[int, Sequence] = {}

    def step() -> None:
        plan = s.plan()
        check(plan, s, pool, open_.values())
        assert s.running <= max_running
        for number in run(s, plan):
            del open_[number]
        for chunk in plan.chunks:
            if chunk.sequence.id in open_:
                assert chunk.sequence.computed == chunk.start + chunk.count > chunk.start
        assert plan.chunks or not s.has_work

    for number, (action, first, second) in enumerate(actions):
        if action == "add" and not s.is_full and first + second <= blocks * 16:
            one = sequence(number, first, second)
            common = min(first, 500)
            one.tokens[:common] = [7000 * (number % beginnings) + i for i in range(common)]
            open_[number] = one
            s.add(one)
        elif action == "abort":
            s.remove(first)
            open_.pop(first, None)
        else:
            step()
    for _ in range(5000):
        if not s.has_work:
            break
        step()
    assert not s.has_work, "somebody starved"
    assert pool.free_blocks == pool.total
    assert not s._coming
