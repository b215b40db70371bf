"""CPU attention: equal to the reference, and in exact mode to the bit however it is cut."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from neuron.layers.attention import AttentionRow, ReferenceStep, attend
from neuron.layers.cache import KVCache
from neuron.layers.paging import GROUP_TILES, TILE_TOKENS
from neuron.layers.tiles import TiledStep

LENGTH = 2 * GROUP_TILES * TILE_TOKENS + 300
"""Beyond two groups of tiles."""


class Sequence:
    """Random queries, keys and values of one sequence, and a cache to compute it in."""

    def __init__(
        self, kv_heads: int, group: int, dim: int, dtype: torch.dtype, *, scattered: bool
    ) -> None:
        generator = torch.Generator().manual_seed(4)
        shape = (LENGTH, kv_heads, dim)
        self.key, self.value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        self.query = torch.randn(LENGTH, kv_heads * group, dim, generator=generator).to(dtype)
        count = -(-LENGTH // 16)
        cache = KVCache(1, count + 9, kv_heads, dim, dtype=dtype, device=torch.device("cpu"))
        cache._pages.normal_(generator=generator)  # what others have left there
        self.cache = cache.layer(0)
        self.blocks = list(range(5, 5 + count))
        if scattered:  # every other tile is torn apart
            chance = random.Random(2)
            for begin in range(0, count - 16, 32):
                tile = self.blocks[begin : begin + 16]
                self.blocks[begin : begin + 16] = chance.sample(tile, len(tile))

    def attend(
        self, cuts: Iterator[int], window: int | None, kind: type[Any], **more: Any
    ) -> torch.Tensor:
        outs, begin = [], 0
        while begin < LENGTH:
            count = min(next(cuts), LENGTH - begin)
            end = begin + count
            slots = [self.blocks[i // 16] * 16 + i % 16 for i in range(begin, end)]
            row = AttentionRow(0, count, begin, self.blocks[: -(-end // 16)])
            step = kind([row], torch.tensor(slots), {window}, self.key.dtype, **more)
            now = slice(begin, end)
            parts = self.query[now], self.key[now], self.value[now]
            outs.append(attend(*parts, self.cache, step, window))
            begin = end
        return torch.cat(outs)


def forever(*counts: int) -> Iterator[int]:
    chance = random.Random(1)
    while True:
        yield chance.choice(counts)


VALUES: tuple[tuple[Any, ...], ...] = (
    (torch.float32, torch.bfloat16),
    ((2, 2), (1, 7)),
    (None, 100, 2500),
    (False, True),
)
CASES = [
    pytest.param(*(values[i] for values, i in zip(VALUES, at, strict=True)), marks=marks)
    for at in itertools.product(*(range(len(values)) for values in VALUES))
    for marks in ([pytest.mark.slow] if sum(at) % 2 else [],)
]
"""Of all combinations every other one, so that any two values of two parameters meet; all of them
under ``-m slow``."""


@pytest.mark.parametrize(("dtype", "heads", "window", "scattered"), CASES)
def test_however_a_sequence_is_cut(
    dtype: torch.dtype, heads: tuple[int, int], window: int | None, scattered: bool
) -> None:
    kv_heads, group = heads
    torch.set_num_threads(1)
    sequence = Sequence(kv_heads, group, 32, dtype, scattered=scattered)
    exact = {"group": group, "exact": True}
    expected = sequence.attend(forever(512), window, TiledStep, **exact)
    reference = sequence.attend(forever(512), window, ReferenceStep)
    loose = sequence.attend(forever(100, 1, 700), window, TiledStep, group=group, exact=False)
    tolerance = 2e-6 if dtype is torch.float32 else 2e-2
    for out in (expected, loose):
        assert (out - reference).abs().max() < tolerance
    for cuts in ((1, 2, 900), (1, 5, 16, 255, 300), (33, 64)):
        out = sequence.attend(forever(*cuts), window, TiledStep, **exact)
        assert torch.equal(out, expected), cuts


def test_rows_of_one_token_are_computed_as_if_alone() -> None:
    torch.set_num_threads(1)
    sequence = Sequence(2, 3, 32, torch.float32, scattered=False)
    expected = sequence.attend(forever(512), None, TiledStep, group=3, exact=True)
    lengths = [1, 40, 256, 257, 2000, LENGTH]
    rows = [
        AttentionRow(at, 1, length - 1, sequence.blocks[: -(-length // 16)])
        for at, length in enumerate(lengths)
    ]
    where = torch.tensor([length - 1 for length in lengths])
    step = TiledStep(rows, where + 5 * 16, {None}, torch.float32, group=3, exact=True)
    parts = sequence.query[where], sequence.key[where], sequence.value[where]
    assert torch.equal(attend(*parts, sequence.cache, step, None), expected[where])
