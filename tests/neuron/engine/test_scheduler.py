"""The scheduler's promises, on chosen cases and on random schedules of add, abort and finish."""

from hypothesis import given, settings
from hypothesis import strategies as st

from neuron.engine.blocks import BlockPool
from neuron.engine.messages import Sample
from neuron.engine.scheduler import Limits, Plan, Scheduler, water_fill
from neuron.engine.sequence import Sequence


def sequence(number: int, prompt: int, answer: int = 8) -> Sequence:
    sample = Sample(max_tokens=answer)
    return Sequence(number, sample, [1] * prompt, prompt, prompt + answer)


def scheduler(
    *, running: int = 8, queued: int = 64, step: int = 256, chunk: int = 64, blocks: int = 1000
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks)
    return Scheduler(Limits(running, queued, step, chunk), pool), pool


def run(scheduler: Scheduler, plan: Plan) -> list[int]:
    """Commits *plan* as the engine does; returns the ids of the sequences that finished."""
    scheduler.commit(plan)
    done = []
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(1)
            if chunk.sequence.total >= chunk.sequence.limit:
                scheduler.remove(chunk.sequence.id)
                done.append(chunk.sequence.id)
    return done


def shape(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in plan.chunks]


def test_decode_rows_come_first_and_protect_themselves_from_prefill() -> None:
    s, _ = scheduler()
    s.add(sequence(1, 10))
    plan = s.plan()
    assert shape(plan) == [(1, 10)]
    run(s, plan)
    s.add(sequence(2, 500))
    plan = s.plan()
    assert shape(plan) == [(1, 1), (2, 64)]
    run(s, plan)
    s.remove(1)
    assert shape(s.plan()) == [(2, 256)], "nobody decodes, so the whole budget is prefill's"


def test_a_short_prompt_overtakes_a_long_prefill() -> None:
    s, _ = scheduler()
    long, short = sequence(1, 1500), sequence(2, 40)
    s.add(long)
    run(s, s.plan())
    s.add(short)
    plan = s.plan()
    assert shape(plan) == [(1, 216), (2, 40)]
    run(s, plan)
    assert short.generated == 1
    assert long.generated == 0


def test_admission_is_first_come_first_served_even_if_a_later_one_would_fit() -> None:
    s, pool = scheduler(blocks=10)
    s.add(sequence(1, 100))  # 7 blocks
    s.add(sequence(2, 100))
    s.add(sequence(3, 10))  # 2 blocks: would fit beside 1
    assert shape(s.plan()) == [(1, 100)]
    assert (s.running, s.queued, pool.free) == (1, 2, 3)
    s.remove(1)
    assert shape(s.plan()) == [(2, 100), (3, 10)]


def test_the_queue_is_bounded() -> None:
    s, _ = scheduler(running=2, queued=3)
    for number in range(5):
        assert not s.is_full
        s.add(sequence(number, 10))
    assert s.is_full
    s.plan()
    assert s.is_full
    s.remove(4)
    assert not s.is_full


def test_abort_reaches_waiting_and_running_and_ignores_strangers() -> None:
    s, pool = scheduler(running=1)
    s.add(sequence(1, 10))
    s.add(sequence(2, 10))
    s.plan()
    for number in (2, 1, 7):
        s.remove(number)
    assert not s.has_work
    assert pool.free == pool.total
    assert not s.plan().chunks


def test_sixty_four_can_run_at_once() -> None:
    s, _ = scheduler(running=64, step=256, chunk=64)
    for number in range(64):
        s.add(sequence(number, 3))
    plan = s.plan()
    while plan.tokens > 64 or len(plan.chunks) < 64:
        run(s, plan)
        plan = s.plan()
    assert shape(plan) == [(number, 1) for number in range(64)]


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


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 120), st.integers(1, 30)),
        st.tuples(st.just("abort"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.integers(4, 9), st.integers(10, 40))
def test_random_schedules(
    actions: list[tuple[str, int, int]], max_running: int, blocks: int
) -> None:
    s, pool = scheduler(running=max_running, queued=10, step=48, chunk=16, blocks=blocks)
    open_: dict[int, Sequence] = {}
    admitted: list[int] = []

    def step() -> None:
        before = {number: one.computed for number, one in open_.items()}
        plan = s.plan()
        check(plan)
        for number, one in open_.items():
            if one.blocks and number not in admitted:
                admitted.append(number)
        scheduled = {chunk.sequence.id for chunk in plan.chunks}
        for number in run(s, plan):
            del open_[number]
        for number in scheduled & open_.keys():
            assert open_[number].computed > before[number]
        assert scheduled or not s.has_work

    def check(plan: Plan) -> None:
        counts = [chunk.count for chunk in plan.chunks]
        decoding = [chunk.sequence.remaining == 1 for chunk in plan.chunks]
        assert decoding == sorted(decoding, reverse=True), "decode rows come first"
        assert plan.tokens <= 48
        if any(decoding):
            assert sum(counts) - sum(decoding) <= 16
        owned = [block for one in open_.values() for block in one.blocks]
        assert len(owned) == len(set(owned)) == pool.total - pool.free
        running = {one.id for one in open_.values() if one.blocks}
        assert len(running) == s.running <= max_running
        assert {chunk.sequence.id for chunk in plan.chunks} == running, "all running ones progress"
        for chunk in plan.chunks:
            assert (chunk.start + chunk.count) <= len(chunk.sequence.blocks) * 16

    for number, (action, first, second) in enumerate(actions):
        if action == "add" and not s.is_full:
            open_[number] = sequence(number, first, second)
            if len(open_[number].tokens) + second <= blocks * 16:
                s.add(open_[number])
            else:
                del open_[number]
        elif action == "abort":
            s.remove(first)
            open_.pop(first, None)
        else:
            step()
    for _ in range(3000):
        if not s.has_work:
            break
        step()
    assert not s.has_work, "somebody starved"
    assert pool.free == pool.total
    assert admitted == sorted(admitted), "first come, first served"
