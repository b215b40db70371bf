"""The sizes of the paged KV cache, which the layers and the block pool share; no torch."""

BLOCK_TOKENS = 16
"""Tokens of one block, on every device: the unit that is given out and found again."""
TILE_BLOCKS = 16
"""Blocks of one tile: the unit that CPU attention reads in place if it lies together."""
TILE_TOKENS = BLOCK_TOKENS * TILE_BLOCKS
GROUP_TILES = 8
"""Tiles whose partial results are held at once."""


def blocks_for(tokens: int) -> int:
    """Blocks that *tokens* tokens take."""
    return -(-tokens // BLOCK_TOKENS)
