"""The paged KV cache: where the keys and values of every token lie.

Owns the memory and its layout. Who may write where is the block pool's business
(``engine/blocks.py``).
"""

import mmap

import torch

from neuron.layers.paging import BLOCK_TOKENS, TILE_BLOCKS


class KVCache:
    """Keys and values of all layers, ``[blocks, 16, kv_heads, head_dim]`` each.

    Every number is finite from the start, because attention reads whole tiles and multiplies what
    lies beyond a sequence by zero. On a CPU a tile may reach beyond the last block, so a few blocks
    follow that nobody owns or writes: they take no memory.
    """

    def __init__(
        self,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        behind = TILE_BLOCKS - 1 if device.type == "cpu" else 0
        shape = (layers, 2, blocks + behind, BLOCK_TOKENS, kv_heads, head_dim)
        self._pages = _zeros(shape, dtype, device)
        self._layers = [(layer[0], layer[1]) for layer in self._pages]
        self.blocks = blocks
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return self._pages[:, :, : self.blocks].nbytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer."""
        return self._layers[index]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks, (source, target) each, one after the other, in every layer."""
        for source, target in pairs:
            self._pages[:, :, target] = self._pages[:, :, source]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the system commits the memory page by page, as sequences use it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = dtype.itemsize
    for size in shape:
        count *= size
    return torch.frombuffer(mmap.mmap(-1, count), dtype=dtype).view(shape)
