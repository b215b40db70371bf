"""The block pool: nothing is lost, nothing has two owners, runs are preferred."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.blocks import BlockPool, blocks_for
from neuron.layers import attention


def test_both_sides_agree_on_the_block_size() -> None:
    from neuron.engine.blocks import BLOCK_TOKENS

    assert BLOCK_TOKENS == attention.BLOCK_TOKENS


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens) == blocks


def test_a_run_is_preferred_and_scattered_blocks_are_the_fallback() -> None:
    pool = BlockPool(10)
    first, second, third = pool.take(2), pool.take(3), pool.take(3)
    pool.give_back(first)
    pool.give_back(third)
    assert pool.take(4) == [5, 6, 7, 8], "the first run that is long enough"
    pool.give_back(second)
    assert pool.take(5) == [0, 1, 2, 3, 4]
    assert pool.free == 1


def test_without_a_run_the_first_free_blocks_are_taken() -> None:
    pool = BlockPool(6)
    single = [pool.take(1) for _ in range(6)]
    for index in (0, 2, 3, 5):
        pool.give_back(single[index])
    assert pool.take(3) == [0, 2, 3]


def test_giving_back_twice_is_a_bug_that_shows() -> None:
    pool = BlockPool(4)
    taken = pool.take(2)
    pool.give_back(taken)
    with pytest.raises(AssertionError, match="free already"):
        pool.give_back(taken)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=80))
def test_every_block_has_at_most_one_owner(actions: list[tuple[bool, int]]) -> None:
    pool = BlockPool(20)
    held: list[list[int]] = []
    for take, count in actions:
        if take and count <= pool.free:
            held.append(pool.take(count))
            assert len(held[-1]) == count
        elif not take and held:
            pool.give_back(held.pop(count % len(held)))
        owned = [block for blocks in held for block in blocks]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(range(20))
        assert pool.free == 20 - len(owned)
