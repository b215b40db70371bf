"""What every rank does in a step: runs a batch through the layers, and the head on some rows.

Owns the tensors of a step. Must not know sequences, plans or sampling.
"""

import torch

from neuron.engine.blocks import BLOCK_TOKENS
from neuron.engine.machine.kernel_probe import KernelPath
from neuron.ipc.rank_commands import Compute
from neuron.layers.attention import AttentionRow
from neuron.layers.cache import KVCache
from neuron.models.decoder import Decoder


class Forward:
    """A rank's model, its KV cache and their device."""

    def __init__(self, model: Decoder, cache: KVCache, path: KernelPath) -> None:
        self.model = model
        self._cache = cache
        self._path = path
        self._windows = set(model.config.windows)
        self._sharing = model.heads // model.kv_heads  # query heads per key head
        self._hidden = torch.empty(0)

    def compute(self, batch: Compute) -> None:
        """Runs the batch through the layers and keeps the result for :meth:`logits`."""
        self._cache.copy(batch.copies)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[AttentionRow] = []
        for piece in batch.pieces:
            count, start = len(piece.tokens), piece.start
            rows.append(AttentionRow(len(tokens), count, start, piece.blocks))
            tokens += piece.tokens
            positions += range(start, start + count)
            slots += _slots(piece.blocks, start, start + count)
        step = self._path.step(
            rows, self._tensor(slots), self._windows, self._cache.dtype, self._sharing
        )
        at = self._tensor(positions)
        self._hidden = self.model.hidden(self._tensor(tokens), at, self._cache, step)

    def logits(self, rows: list[int]) -> torch.Tensor:
        """Float32 logits ``[rows, vocab]`` of some rows of the last batch; on rank 0 only."""
        return self.model.logits(self._hidden[self._tensor(rows)])

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)


def _slots(blocks: list[int], start: int, end: int) -> list[int]:
    """Cache slots of the tokens ``start … end`` of a block table: block * 16 + offset."""
    slots: list[int] = []
    while start < end:
        index, offset = divmod(start, BLOCK_TOKENS)
        count = min(end - start, BLOCK_TOKENS - offset)
        first = blocks[index] * BLOCK_TOKENS + offset
        slots += range(first, first + count)
        start += count
    return slots
