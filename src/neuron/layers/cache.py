"""The paged KV cache: stores the keys and values of every token.

Owns the memory and its layout. Which sequence may write where is decided by the block pool
(``engine/blocks.py``).
"""

import torch

from neuron.layers.paging import BLOCK_TOKENS, TILE_BLOCKS


class KVCache:
    """Keys and values of all layers, ``[blocks, 16, kv_heads, head_dim]`` each.

    All of it is written once when it is allocated: memory that the system has only promised would
    be missing later, in the middle of an answer. So every number is finite from the start. It must
    be, because attention reads whole tiles and multiplies what lies beyond a sequence by zero. On a
    CPU a tile may reach beyond the last block, into the keys or values that are next in memory and
    just as finite; a few unowned blocks follow the very last ones.
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
        block = (BLOCK_TOKENS, kv_heads, head_dim)
        memory = torch.zeros((2 * layers * blocks + behind, *block), dtype=dtype, device=device)
        self._pages = memory[: 2 * layers * blocks].view(layers, 2, blocks, *block)
        begins = range(0, 2 * layers * blocks, blocks)
        reaches = [memory[begin : begin + blocks + behind] for begin in begins]
        self._layers = list(zip(reaches[::2], reaches[1::2], strict=True))
        self.blocks = blocks
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return self._pages.nbytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer."""
        return self._layers[index]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks in every layer, one (source, target) pair after the other."""
        for source, target in pairs:
            self._pages[:, :, target] = self._pages[:, :, source]
