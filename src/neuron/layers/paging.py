"""The sizes of the paged KV cache, shared by the layers and the block pool; no torch."""

BLOCK_TOKENS = 16
"""Tokens per block on every device: the unit of allocation and of the prefix cache."""
TILE_BLOCKS = 16
"""Blocks per tile: the unit that CPU attention reads in place if it is contiguous."""
TILE_TOKENS = BLOCK_TOKENS * TILE_BLOCKS
GROUP_TILES = 8
"""Tiles whose partial results are held at the same time."""


def blocks_for(tokens: int) -> int:
    """The number of blocks that *tokens* tokens need."""
    return -(-tokens // BLOCK_TOKENS)
