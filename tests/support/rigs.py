"""A model without a process around it, for tests that look at its logits."""

import random
from collections.abc import Sequence as Items
from pathlib import Path

import torch

from neuron.engine.blocks import BlockPool, blocks_for
from neuron.engine.forward import Forward
from neuron.engine.loader import fill_model
from neuron.engine.machine.kernel_probe import choose_path
from neuron.engine.runner import Runner
from neuron.engine.scheduler import Chunk, StepPlan
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import SamplingParams
from neuron.layers.cache import KVCache
from neuron.layers.group import ALONE, Group
from neuron.layers.linear import LinearPlan
from neuron.models.checkpoint import TensorEntry, read_checkpoint
from neuron.models.config import load_config
from neuron.models.decoder import Decoder
from neuron.models.parameters import linear_shapes

Entries = dict[str, TensorEntry]
CPU = torch.device("cpu")
GREEDY = SamplingParams(max_tokens=1)


def plain_model(folder: Path, dtype: torch.dtype, entries: Entries | None = None) -> Decoder:
    """A checkpoint's model with the weights as they were read."""
    model = Decoder(load_config(folder), dtype, dtype, CPU)
    fill_model(model, (entries or read_checkpoint(folder)).values(), LinearPlan())
    return model


class Rig:
    """Loads a checkpoint and computes chunks of sequences on demand."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        blocks: int = 128,
        device: torch.device = CPU,
        exact: bool | None = None,
        reference: bool = False,
        group: Group = ALONE,
    ) -> None:
        """Of a *group*, every rank has one and computes the same; rank 0 has the logits."""
        self.config = config = load_config(folder)
        self.model = Decoder(config, dtype, dtype, device, group)
        self.path = choose_path(
            config,
            linear_shapes(config, group.rank, group.size),
            dtype,
            device,
            exact=exact,
            reference=reference,
        )
        fill_model(self.model, read_checkpoint(folder).values(), self.path.linear)
        cache = KVCache(
            config.layers, blocks, self.model.kv_heads, config.head_dim, dtype=dtype, device=device
        )
        self.runner = Runner(Forward(self.model, cache, self.path))
        self.pool = BlockPool(blocks)
        self._ids = iter(range(10**6))

    def sequence(
        self,
        tokens: Items[int],
        *,
        scattered: bool = False,
        sample: SamplingParams = GREEDY,
        room: int = 0,
    ) -> Sequence:
        """A sequence with blocks for its tokens and *room* more, in random order on request."""
        made = Sequence(next(self._ids), sample, list(tokens), len(tokens), len(tokens) + room)
        while len(made.blocks) < blocks_for(made.limit):
            made.blocks.append(self.pool.allocate(made.blocks))
        if scattered:
            random.Random(made.id).shuffle(made.blocks)
        return made

    def logits(self, *chunks: tuple[Sequence, int]) -> list[torch.Tensor]:
        """Computes *count* more tokens of each sequence in one step: logits ``[count, vocab]``."""
        plan = StepPlan([Chunk(sequence, sequence.computed, count) for sequence, count in chunks])
        every = self.runner.logits(plan, every=True)
        for sequence, count in chunks:
            sequence.computed += count
        return list(torch.split(every, [count for _, count in chunks]))

    def generate(self, sequence: Sequence, count: int) -> list[int]:
        """Lets *sequence* generate *count* tokens alone."""
        for _ in range(count):
            plan = StepPlan([Chunk(sequence, sequence.computed, sequence.remaining)])
            (chosen,) = self.runner.run(plan)
            sequence.computed = sequence.total
            sequence.tokens.append(chosen.token)
        return sequence.tokens[-count:]
