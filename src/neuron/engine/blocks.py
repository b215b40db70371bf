"""The pool of KV cache blocks: who may write where; no torch.

Owns which block is free. Consecutive blocks are preferred, because the CPU attention reads a run
of blocks in place and has to copy scattered ones.
"""

BLOCK_TOKENS = 16
"""Tokens of one block; the cache's layout in ``layers/attention.py`` is the same."""

_FREE, _USED = b"\x01", b"\x00"


def blocks_for(tokens: int) -> int:
    """Blocks that *tokens* tokens take."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """A fixed number of blocks, each owned by one sequence or free."""

    def __init__(self, count: int) -> None:
        self._free = bytearray(_FREE * count)
        self.total = count
        self.free = count
        """How many blocks can be taken now."""

    def take(self, count: int) -> list[int]:
        """Takes *count* blocks (at most :attr:`free`): the first run that is long enough, or the
        first free ones where there is none."""
        assert 0 < count <= self.free, (count, self.free)
        start = self._free.find(_FREE * count)
        if start >= 0:
            blocks = list(range(start, start + count))
        else:
            blocks = []
            for _ in range(count):
                blocks.append(self._free.find(_FREE, blocks[-1] + 1 if blocks else 0))
        for block in blocks:
            self._free[block] = _USED[0]
        self.free -= count
        return blocks

    def give_back(self, blocks: list[int]) -> None:
        """Frees blocks that :meth:`take` returned."""
        for block in blocks:
            assert self._free[block] == _USED[0], f"block {block} is free already"
            self._free[block] = _FREE[0]
        self.free += len(blocks)
