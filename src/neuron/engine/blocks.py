"""The pool of KV cache blocks: who may write to which, and what free blocks still hold; no torch.

Owns how many sequences use each block, and the prefix cache: a full block is cached under a key
that stands for its tokens and all tokens before it. It can be found by that key even after its
sequence has ended, until the block is needed for something else.

CPU attention reads a tile of 16 blocks in place if they are contiguous (``layers/tiles.py``), so
the pool also works with tiles: a sequence's next block is the one after its last, a new tile is
started in an empty one, and the cache evicts whole tiles, the least recently used first. Only when
there is no such tile are single blocks allocated, which costs attention a copy in every step.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import pack

from neuron.layers.paging import BLOCK_TOKENS, TILE_BLOCKS, blocks_for

Key = bytes
"""Identifies the tokens of a block and of everything before it."""
KEY_BYTES = 16

_USED, _EMPTY, _CACHED = 0, 1, 2
"""The states of a block: used by a sequence; free; free, but found by its key."""


def extend_keys(keys: list[Key], tokens: Sequence[int]) -> None:
    """Appends to *keys* the keys of all full blocks of *tokens* that they do not cover yet."""
    for begin in range(len(keys) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        data = pack(f"<{BLOCK_TOKENS}q", *tokens[begin : begin + BLOCK_TOKENS])
        before = keys[-1] if keys else b""
        keys.append(blake2b(before + data, digest_size=KEY_BYTES).digest())


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """A prompt's prefix that was found in the cache."""

    blocks: list[int]
    """The prefix's blocks, now used by the new sequence."""
    copies: list[tuple[int, int]]
    """(source, target) blocks to copy, in this order, before anything else is computed."""


class BlockPool:
    """A fixed number of blocks, each free or used by some sequences."""

    def __init__(self, count: int) -> None:
        self.total = count
        self.free_blocks = count
        """Blocks that can be allocated now, cached ones included."""
        self._state = bytearray([_EMPTY]) * count
        self._users = [0] * count
        self._keys: list[Key | None] = [None] * count
        self._blocks: dict[Key, int] = {}
        self._roots: OrderedDict[Key, None] = OrderedDict()
        # Per tile. An incomplete last tile is only allocated block by block.
        tiles = count // TILE_BLOCKS
        self._tile_users = [0] * tiles
        self._tile_empty = bytearray(b"\x01") * tiles
        # Tiles with cached blocks only; the oldest first.
        self._tile_idle: OrderedDict[int, None] = OrderedDict()

    @property
    def cached(self) -> int:
        """Blocks that can be found by their key, used or free."""
        return len(self._blocks)

    def prefix_heads(self, limit: int) -> list[Key]:
        """Returns the keys of first blocks in the cache, the latest first."""
        return [key for key, _ in zip(reversed(self._roots), range(limit), strict=False)]

    # -- allocating and freeing ------------------------------------------------------------------

    def allocate(self, held: Sequence[int], expected: int = 1) -> int:
        """Allocates one block (one must be free) for a sequence that holds *held*.

        *expected* is how many more blocks the sequence will need, including this one.
        """
        assert self.free_blocks > 0
        if len(held) % TILE_BLOCKS:
            behind = held[-1] + 1
            if behind % TILE_BLOCKS and behind < self.total and self._state[behind] != _USED:
                return self._claim(behind)
            return self._claim(self._any())
        tile = self._pick_tile(held, -(-expected // TILE_BLOCKS))
        return self._claim(self._any() if tile is None else tile * TILE_BLOCKS)

    def free(self, blocks: Sequence[int]) -> None:
        """Ends one use of each of *blocks*. Cached ones stay in the cache as long as possible."""
        for block in reversed(blocks):  # so that the end of a sequence is evicted first
            assert self._users[block] > 0, f"block {block} is free already"
            self._users[block] -= 1
            if not self._users[block]:
                self._release(block)

    def _claim(self, block: int) -> int:
        self._forget(block)
        self._use(block)
        return block

    def _use(self, block: int) -> None:
        self._users[block] += 1
        if self._users[block] > 1:
            return
        self._state[block] = _USED
        self.free_blocks -= 1
        tile = block // TILE_BLOCKS
        if tile < len(self._tile_users):
            self._tile_users[tile] += 1
            self._tile_empty[tile] = 0
            self._tile_idle.pop(tile, None)

    def _release(self, block: int) -> None:
        self._state[block] = _EMPTY if self._keys[block] is None else _CACHED
        self.free_blocks += 1
        tile = block // TILE_BLOCKS
        if tile < len(self._tile_users):
            self._tile_users[tile] -= 1
            self._settle(tile)

    def _settle(self, tile: int) -> None:
        """Files a tile without users as empty or idle."""
        if self._tile_users[tile]:
            return
        begin = tile * TILE_BLOCKS
        if self._state.find(_CACHED, begin, begin + TILE_BLOCKS) >= 0:
            self._tile_idle[tile] = None
        else:
            self._tile_idle.pop(tile, None)
            self._tile_empty[tile] = 1

    def _pick_tile(self, held: Sequence[int], count: int) -> int | None:
        """Returns an empty tile, or None.

        In order of preference: the tile after the last one; one followed by *count* − 1 empty
        tiles; any empty one; the least recently used idle one, which is evicted.
        """
        if held:
            behind = held[-1] // TILE_BLOCKS + 1
            if behind < len(self._tile_empty) and self._tile_empty[behind]:
                return behind
        while count:
            tile = self._tile_empty.find(b"\x01" * count)
            if tile >= 0:
                return tile
            count //= 2
        if not self._tile_idle:
            return None
        tile, _ = self._tile_idle.popitem(last=False)
        for block in range(tile * TILE_BLOCKS, (tile + 1) * TILE_BLOCKS):
            self._forget(block)
        return tile

    def _any(self) -> int:
        """Returns some free block, if possible one that the cache does not need."""
        empty = self._state.find(_EMPTY)
        return empty if empty >= 0 else self._state.find(_CACHED)

    # -- the prefix cache ------------------------------------------------------------------------

    def cache(self, block: int, key: Key, *, root: bool) -> None:
        """Caches the used and full *block* under *key*; *root*: it begins a prompt."""
        assert self._users[block], f"block {block} is not in use"
        known = self._blocks.get(key)
        if known is not None and (known == block or self._users[known]):
            return
        if known is not None:  # the newer block is next to those that follow it
            self._forget(known)
            if known // TILE_BLOCKS < len(self._tile_users):
                self._settle(known // TILE_BLOCKS)
        self._keys[block] = key
        self._blocks[key] = block
        if root:
            self._roots[key] = None

    def match(self, keys: Sequence[Key]) -> list[int]:
        """Returns the cached blocks of the longest known prefix."""
        blocks = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def need(self, found: Sequence[int], blocks: int) -> int:
        """Free blocks needed at most to hold *blocks* blocks, the first of which are *found*."""
        for begin in range(0, len(found), TILE_BLOCKS):
            part = found[begin : begin + TILE_BLOCKS]
            if len(part) == TILE_BLOCKS and _together(part):
                blocks -= sum(self._users[block] > 0 for block in part)
        return blocks

    def reuse(self, found: Sequence[int]) -> PrefixHit:
        """Uses the blocks that :meth:`match` found for a new sequence.

        A whole contiguous tile is shared. The beginning of a tile is reused in place if nobody uses
        the rest of the tile, so that the sequence can continue after it. Everything else is copied
        into the sequence's own blocks, because attention reads whole tiles.
        """
        blocks: list[int] = []
        copies: list[tuple[int, int]] = []
        for block in found:
            self._use(block)
        for begin in range(0, len(found), TILE_BLOCKS):
            part = found[begin : begin + TILE_BLOCKS]
            if self._continuable(part) or self.free_blocks < len(part):
                blocks += part
                continue
            for source in part:
                target = self.allocate(blocks, len(found) - len(blocks))
                copies.append((source, target))
                blocks.append(target)
            self.free(part)
        return PrefixHit(blocks, copies)

    def _continuable(self, part: Sequence[int]) -> bool:
        """Whether *part*, now used by its new sequence, can stay where it is.

        It can if it is contiguous and either a whole tile, or the beginning of one that nobody else
        uses.
        """
        if not _together(part):
            return False
        if len(part) == TILE_BLOCKS:
            return True
        if any(self._users[block] > 1 for block in part):
            return False
        rest = range(part[-1] + 1, min(part[0] + TILE_BLOCKS, self.total))
        return not any(self._users[block] for block in rest)

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is None:
            return
        self._keys[block] = None
        del self._blocks[key]
        self._roots.pop(key, None)
        if self._state[block] == _CACHED:
            self._state[block] = _EMPTY


def _together(part: Sequence[int]) -> bool:
    """Whether *part* is contiguous and begins at the start of a tile."""
    return part[0] % TILE_BLOCKS == 0 and all(b == part[0] + i for i, b in enumerate(part))


__all__ = ["BLOCK_TOKENS", "BlockPool", "Key", "PrefixHit", "blocks_for", "extend_keys"]
