"""The scheduler's promises, on chosen cases."""

from neuron.engine.blocks import BlockPool
from neuron.engine.scheduler import Scheduler, SchedulerLimits
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import SamplingParams
from tests.support.scheduling import run, scheduler, sequence, shape


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
    s.add(sequence(3, 10))  # 1 block: would fit beside 1
    assert shape(s.plan()) == [(1, 100)]
    assert (s.running, s.queued, pool.free_blocks) == (1, 2, 3)
    s.remove(1)
    assert shape(s.plan()) == [(2, 100), (3, 10)]


def test_a_token_far_into_a_prompt_counts_for_more_while_others_decode() -> None:
    pool = BlockPool(1000)
    s = Scheduler(SchedulerLimits(8, 64, 256, 64, context_weight=1 / 100), pool)
    s.add(sequence(1, 10, 900))
    run(s, s.plan())
    long = sequence(2, 2000)
    s.add(long)
    counts = []
    while long.remaining > 1:
        plan = s.plan()
        counts.append(plan.chunks[-1].count)
        run(s, plan)
    assert counts[0] == 64
    assert counts == sorted(counts, reverse=True)
    assert 20 in counts
    assert 16 in counts, "but not much less than a block, which reads the whole context too"
    assert min(counts[:-1]) == 16


def test_behind_a_long_prompt_far_into_its_context_others_get_their_turn() -> None:
    pool = BlockPool(1000)
    s = Scheduler(SchedulerLimits(8, 64, 256, 64, context_weight=1 / 100), pool)
    s.add(sequence(1, 10, 900))
    run(s, s.plan())
    s.add(sequence(2, 3000))
    while s.plan().chunks[-1].start < 1000:
        run(s, s.plan())
    s.add(sequence(3, 3000))
    s.add(sequence(4, 40))
    assert shape(s.plan()) == [(1, 1), (2, 16), (3, 24), (4, 24)]
    while shape(s.plan())[1:] != [(2, 16)]:
        run(s, s.plan())  # until a block of the third does not fit beside one of the second
    s.add(sequence(5, 40))
    assert shape(s.plan()) == [(1, 1), (2, 16), (5, 40)]


def test_prompts_are_read_block_by_block_however_many_there_are() -> None:
    s, _ = scheduler(running=50, step=256, chunk=64)
    s.add(sequence(0, 1, 900))
    run(s, s.plan())
    for number in range(1, 40):
        s.add(sequence(number, 100 if number != 30 else 9))
    assert shape(s.plan()) == [(0, 1), (1, 19), (2, 18), (3, 18), (30, 9)]


def drain(s: Scheduler) -> list[int]:
    done: list[int] = []
    while s.has_work:
        done += run(s, s.plan())
    return done


def test_when_blocks_run_out_the_youngest_is_preempted_and_comes_back() -> None:
    s, pool = scheduler(blocks=8)
    old, young = sequence(1, 60, 60), sequence(2, 60, 40)  # 8 and 7 blocks in the end, 4 now
    s.add(old)
    s.add(young)
    assert shape(s.plan()) == [(1, 60)], "a block for each running one must be left"
    s, pool = scheduler(blocks=11)
    old, young = sequence(1, 60, 60), sequence(2, 60, 40)
    s.add(old)
    s.add(young)
    assert drain(s) == [1, 2]
    assert s.preemptions > 0
    assert (old.generated, young.generated) == (60, 40)
    assert pool.free_blocks == pool.total


def test_a_preempted_sequence_finds_most_of_its_blocks_again() -> None:
    s, _ = scheduler(blocks=11)
    old, young = sequence(1, 60, 60), sequence(2, 60, 40)
    s.add(old)
    s.add(young)
    while not s.preemptions:
        run(s, s.plan())
    assert (young.computed, young.blocks) == (0, [])
    s.remove(1)
    s.plan()
    assert young.computed >= 48
    assert young.cached == 0, "of its prompt nothing was cached when it came"


def twin(number: int, of: Sequence, more: int = 0) -> Sequence:
    """A sequence with the same prompt and *more* tokens of its own."""
    tokens = of.tokens[: of.prompt_tokens] + [900_000 + number * 1000 + i for i in range(more)]
    return Sequence(number, SamplingParams(max_tokens=8), tokens, len(tokens), len(tokens) + 8)


def test_a_known_beginning_is_not_computed_again() -> None:
    s, pool = scheduler()
    first = sequence(1, 100)
    s.add(first)
    drain(s)
    second, same = twin(2, first, 50), twin(3, first)
    s.add(second)
    s.add(same)
    assert shape(s.plan()) == [(2, 54), (3, 4)], "6 full blocks are known"
    assert (second.cached, same.cached) == (96, 96)
    drain(s)
    assert pool.free_blocks == pool.total


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    s, _ = scheduler()
    first = sequence(1, 96)
    s.add(first)
    drain(s)
    same = twin(2, first)
    s.add(same)
    assert shape(s.plan()) == [(2, 16)]
    assert same.cached == 80


def test_choices_of_one_prompt_compute_it_once() -> None:
    s, _ = scheduler()
    first = sequence(1, 300)
    choices = [twin(number, first) for number in range(2, 6)]
    other = sequence(9, 20)
    for one in (first, *choices, other):
        s.add(one)
    plan = s.plan()
    assert shape(plan) == [(1, 236), (9, 20)], "the choices wait for the first, nobody for them"
    computed = plan.tokens
    while any(one.generated == 0 for one in choices):
        run(s, plan)
        plan = s.plan()
        computed += sum(chunk.count for chunk in plan.chunks if chunk.count > 1)
    assert computed < 300 + 20 + 4 * 80
    assert all(one.cached >= 224 for one in choices)


def test_who_waits_for_another_ones_beginning_is_freed_by_its_end() -> None:
    s, pool = scheduler()
    first = sequence(1, 300)
    second = twin(2, first)
    s.add(first)
    s.add(second)
    assert shape(s.plan()) == [(1, 256)]
    s.remove(1)
    assert shape(s.plan()) == [(2, 256)]
    drain(s)
    assert pool.free_blocks == pool.total


def test_prompt_logprobs_need_every_token() -> None:
    s, _ = scheduler()
    first = sequence(1, 100)
    s.add(first)
    drain(s)
    second = twin(2, first)
    second.sample = SamplingParams(max_tokens=8, prompt_logprobs=0)
    s.add(second)
    assert shape(s.plan()) == [(2, 100)]


def test_deadlines() -> None:
    s, _ = scheduler(running=1)
    for number, deadline in ((1, 5.0), (2, 3.0), (3, None)):
        one = sequence(number, 10)
        one.deadline = deadline
        s.add(one)
    s.plan()
    assert [one.id for one in s.overdue(2.9)] == []
    assert [one.id for one in s.overdue(3.0)] == [2]
    assert [one.id for one in s.overdue(9.0)] == [1, 2]


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
    assert pool.free_blocks == pool.total
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
