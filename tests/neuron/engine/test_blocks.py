"""The block pool: nothing is lost or given to two, tiles stay together, the cache tells no lies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.blocks import BlockPool, Key, blocks_for, extend_keys
from neuron.layers.paging import TILE_BLOCKS
from tests.support.properties import examples


def key(name: int) -> Key:
    return bytes([name]) * 16


def take(pool: BlockPool, count: int, held: list[int] | None = None) -> list[int]:
    blocks = held if held is not None else []
    for left in range(count, 0, -1):
        blocks.append(pool.allocate(blocks, left))
    return blocks


def cache(pool: BlockPool, names: list[int]) -> list[int]:
    """A sequence of blocks that has ended, published under *names*."""
    blocks = take(pool, len(names))
    for index, (block, name) in enumerate(zip(blocks, names, strict=True)):
        pool.cache(block, key(name), root=index == 0)
    pool.free(blocks)
    return blocks


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens) == blocks


def test_a_key_stands_for_the_block_and_everything_before_it() -> None:
    tokens = list(range(50))
    keys: list[Key] = []
    extend_keys(keys, tokens[:20])
    assert len(keys) == 1, "full blocks only"
    extend_keys(keys, tokens)
    whole: list[Key] = []
    extend_keys(whole, tokens)
    assert keys == whole
    assert len(keys) == 3
    other: list[Key] = []
    extend_keys(other, [99, *tokens[1:]])
    assert not set(other) & set(keys)


def test_a_long_prompt_is_one_run_and_each_tile_begins_aligned() -> None:
    pool = BlockPool(8 * TILE_BLOCKS)
    first = take(pool, 3)
    long = take(pool, 40)
    assert long == list(range(long[0], long[0] + 40))
    assert long[0] % TILE_BLOCKS == 0
    assert take(pool, 2, first) == [0, 1, 2, 3, 4], "the rest of a tile is kept for its sequence"


def test_two_sequences_that_grow_in_turn_stay_together() -> None:
    pool = BlockPool(6 * TILE_BLOCKS)
    one: list[int] = []
    two: list[int] = []
    for _ in range(2 * TILE_BLOCKS):
        one.append(pool.allocate(one))
        two.append(pool.allocate(two))
    for blocks in (one, two):
        for begin in range(0, len(blocks), TILE_BLOCKS):
            tile = blocks[begin : begin + TILE_BLOCKS]
            assert tile == list(range(tile[0], tile[0] + TILE_BLOCKS))


def test_without_an_empty_tile_single_blocks_are_used() -> None:
    pool = BlockPool(2 * TILE_BLOCKS)
    held = [take(pool, 1), take(pool, 1)]
    more = take(pool, 5)
    assert pool.free_blocks == 2 * TILE_BLOCKS - 7
    assert not set(more) & {block for blocks in held for block in blocks}


def test_what_has_ended_is_found_until_it_is_needed_and_the_oldest_goes_first() -> None:
    pool = BlockPool(3 * TILE_BLOCKS)
    old, new = cache(pool, [1, 2, 3]), cache(pool, [11, 12])
    assert pool.free_blocks == pool.total
    assert pool.match([key(1), key(2), key(9), key(3)]) == old[:2]
    assert pool.prefix_heads(9) == [key(11), key(1)]
    pool.free(pool.reuse(old[:1]).blocks)  # used once more, so the other is older now
    take(pool, 2 * TILE_BLOCKS)
    assert pool.match([key(11)]) == []
    assert pool.match([key(1), key(2), key(3)]) == old
    assert pool.prefix_heads(9) == [key(1)]
    assert pool.cached == len(old)
    assert new[0] not in old


def test_a_whole_tile_is_shared_and_counts_its_users() -> None:
    pool = BlockPool(3 * TILE_BLOCKS)
    names = list(range(TILE_BLOCKS))
    tile = cache(pool, names)
    keys = [key(name) for name in names]
    one, two = pool.reuse(pool.match(keys)), pool.reuse(pool.match(keys))
    assert one.blocks == two.blocks == tile
    assert one.copies == two.copies == []
    assert pool.free_blocks == 2 * TILE_BLOCKS
    assert pool.need(tile, 20) == 4, "what somebody uses already costs nothing"
    pool.free(one.blocks)
    assert pool.free_blocks == 2 * TILE_BLOCKS
    pool.free(two.blocks)
    assert pool.free_blocks == pool.total


def test_the_beginning_of_a_tile_is_taken_over_when_it_is_idle_and_copied_when_it_is_not() -> None:
    pool = BlockPool(3 * TILE_BLOCKS)
    known = cache(pool, [1, 2, 3])
    first = pool.reuse(pool.match([key(1), key(2)]))
    assert (first.blocks, first.copies) == (known[:2], [])
    assert take(pool, 1, first.blocks)[-1] == known[2], "it goes on in place"
    second = pool.reuse(pool.match([key(1), key(2)]))
    assert [source for source, _ in second.copies] == known[:2]
    assert second.blocks == [target for _, target in second.copies]
    assert take(pool, 3, second.blocks) == list(range(second.blocks[0], second.blocks[0] + 5))


def test_the_newer_of_two_equal_blocks_is_kept_once_the_older_is_idle() -> None:
    pool = BlockPool(2 * TILE_BLOCKS)
    (old,) = cache(pool, [1])
    fresh = take(pool, 1)
    pool.cache(fresh[0], key(1), root=True)
    assert pool.match([key(1)]) == fresh != [old]
    other = take(pool, 1)
    pool.cache(other[0], key(1), root=True)
    assert pool.match([key(1)]) == fresh, "not while it is used"


def test_giving_back_twice_is_a_bug_that_shows() -> None:
    pool = BlockPool(4)
    blocks = take(pool, 2)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="free already"):
        pool.free(blocks)


@examples(300)
@given(st.integers(1, 130), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=50))
def test_contents_survive_whatever_happens(total: int, actions: list[tuple[int, int]]) -> None:
    """Sequences of random length with few different beginnings; *memory* holds what was written,
    so a block given to two, or a key that lies, shows."""
    pool = BlockPool(total)
    memory: dict[int, Key] = {}
    running: list[tuple[list[int], list[Key]]] = []
    for family, length in actions:
        keys: list[Key] = []
        extend_keys(keys, [family] * 16 * length + [length] * 16)
        found = pool.match(keys)
        assert [memory[block] for block in found] == keys[: len(found)]
        if pool.need(found, len(keys)) <= pool.free_blocks:
            adopted = pool.reuse(found)
            for source, target in adopted.copies:
                memory[target] = memory[source]
            blocks = adopted.blocks
            for index in range(len(blocks), len(keys)):
                blocks.append(pool.allocate(blocks, len(keys) - index))
                memory[blocks[-1]] = keys[index]
            for index, block in enumerate(blocks):
                pool.cache(block, keys[index], root=index == 0)
            running.append((blocks, keys))
        elif running:
            pool.free(running.pop(0)[0])
        for blocks, own in running:
            assert [memory[block] for block in blocks] == own
        used = {block for blocks, _ in running for block in blocks}
        assert pool.free_blocks == total - len(used)
    for blocks, _ in running:
        pool.free(blocks)
    assert pool.free_blocks == total
    assert len(take(pool, total)) == total
    assert (pool.cached, pool.prefix_heads(9)) == (0, [])
