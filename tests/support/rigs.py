"""A model without a process around it, for tests that look at its logits."""

import random
from collections.abc import Sequence as Items
from pathlib import Path

import torch

from neuron.engine.blocks import BlockPool, blocks_for
from neuron.engine.loader import build_model
from neuron.engine.messages import Sample
from neuron.engine.runner import Runner
from neuron.engine.scheduler import Chunk, Plan
from neuron.engine.sequence import Sequence
from neuron.layers.attention import KVCache
from neuron.models.checkpoint import read_checkpoint
from neuron.models.config import load_config

CPU = torch.device("cpu")
GREEDY = Sample(max_tokens=1)


class Rig:
    """Loads a checkpoint and computes chunks of sequences on demand."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        blocks: int = 128,
        device: torch.device = CPU,
    ) -> None:
        self.config = config = load_config(folder)
        self.model = build_model(config, read_checkpoint(folder), dtype, device)
        cache = KVCache(
            config.layers, blocks, config.kv_heads, config.head_dim, dtype=dtype, device=device
        )
        self.runner = Runner(self.model, cache, device)
        self.pool = BlockPool(blocks)
        self._ids = iter(range(10**6))

    def sequence(
        self, tokens: Items[int], *, scattered: bool = False, sample: Sample = GREEDY, room: int = 0
    ) -> Sequence:
        """A sequence with blocks for its tokens and *room* more, in random order on request."""
        made = Sequence(next(self._ids), sample, list(tokens), len(tokens), len(tokens) + room)
        made.blocks = self.pool.take(blocks_for(made.limit))
        if scattered:
            random.Random(made.id).shuffle(made.blocks)
        else:
            made.first_block = made.blocks[0]
        return made

    def logits(self, *chunks: tuple[Sequence, int]) -> list[torch.Tensor]:
        """Computes *count* more tokens of each sequence in one step: logits ``[count, vocab]``."""
        plan = Plan([Chunk(sequence, sequence.computed, count) for sequence, count in chunks])
        every = self.runner.logits(plan, every=True)
        for sequence, count in chunks:
            sequence.computed += count
        return list(torch.split(every, [count for _, count in chunks]))

    def generate(self, sequence: Sequence, count: int) -> list[int]:
        """Lets *sequence* generate *count* tokens alone."""
        for _ in range(count):
            plan = Plan([Chunk(sequence, sequence.computed, sequence.remaining)])
            (token,) = self.runner.run(plan)
            sequence.computed = sequence.total
            sequence.tokens.append(token)
        return sequence.tokens[-count:]
