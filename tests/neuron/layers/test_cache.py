"""The KV cache's memory: all of it is there from the start, and a tile may reach beyond a layer."""

import os

import torch

from neuron.hardware.host import written_bytes
from neuron.layers.cache import KVCache
from neuron.layers.paging import TILE_BLOCKS

CPU = torch.device("cpu")


def test_memory_is_taken_when_the_cache_is_made() -> None:
    before = written_bytes(os.getpid())
    cache = KVCache(4, 1024, 4, 64, dtype=torch.float32, device=CPU)
    assert cache.nbytes == 4 * 2 * 1024 * 16 * 4 * 64 * 4
    assert written_bytes(os.getpid()) - before > 0.95 * cache.nbytes


def test_every_layer_has_keys_and_values_of_its_own() -> None:
    cache = KVCache(3, 5, 2, 4, dtype=torch.float32, device=CPU)
    for index in range(3):
        for offset, part in enumerate(cache.layer(index)):
            part[:5] = 10 * index + offset + 1
    for index in range(3):
        for offset, part in enumerate(cache.layer(index)):
            assert bool((part[:5] == 10 * index + offset + 1).all())


def test_a_tile_at_the_end_of_every_layer_is_finite_memory() -> None:
    cache = KVCache(2, 3, 2, 4, dtype=torch.float32, device=CPU)
    for layer in range(2):
        for part in cache.layer(layer):
            assert part.shape == (3 + TILE_BLOCKS - 1, 16, 2, 4)
            assert part.is_contiguous()
            assert bool(part.isfinite().all())


def test_blocks_are_copied_in_all_layers() -> None:
    cache = KVCache(2, 4, 1, 2, dtype=torch.float32, device=CPU)
    parts = [part for layer in range(2) for part in cache.layer(layer)]
    for value, part in enumerate(parts):
        part[1] = value + 1
    cache.copy([(1, 3), (3, 0)])
    for value, part in enumerate(parts):
        assert [int(part[block].max()) for block in range(4)] == [
            value + 1,
            value + 1,
            0,
            value + 1,
        ]
