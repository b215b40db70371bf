"""Carries out a plan: one flat batch through the model, then a token for every row that asks.

Owns the tensors of a step. Must not know queues, text or messages beyond the sampling parameters.
"""

import torch

from neuron.engine.blocks import BLOCK_TOKENS
from neuron.engine.sampler import SampleRow, sample_tokens
from neuron.engine.scheduler import Chunk, Plan
from neuron.layers.attention import AttentionInput, AttentionRow, KVCache
from neuron.models.qwen3 import Qwen3


class EngineFault(Exception):
    """Raised when the engine cannot go on; it becomes a ``Fatal`` message."""


class PoisonedLogits(EngineFault):
    """Raised when the model computes NaN or infinity."""


class Runner:
    """A model, its KV cache and the device they live on."""

    def __init__(self, model: Qwen3, cache: KVCache, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._device = device
        self._windows = set(model.config.windows)
        self._dtype = model.embedding.weight.dtype

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[int]:
        """Computes *plan*; returns the next token of each chunk that samples, in order.

        Raises :class:`PoisonedLogits` when a row's logits are not finite.
        """
        logits = self.logits(plan)
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        if not sampling:
            return []
        rows = [SampleRow(s.sample, s.prompt_tokens, s.generated) for s in sampling]
        tokens: list[int] = sample_tokens(logits, rows).tolist()
        if -1 in tokens:
            bad = sampling[tokens.index(-1)]
            raise PoisonedLogits(
                f"the model computed NaN or infinity after {bad.total} tokens of a sequence; "
                "the weights or the device are faulty, or the dtype is too narrow for this model"
            )
        return tokens

    @torch.inference_mode()
    def logits(self, plan: Plan, *, every: bool = False) -> torch.Tensor:
        """Computes *plan* and returns float32 logits ``[rows, vocab]``.

        A row for each chunk that samples, or with *every* for each token of the batch.
        """
        flat, rows, ends = self._flatten(plan.chunks)
        tokens, positions, slots = flat  # (tokens) each
        step = AttentionInput(rows, slots, self._windows, self._dtype)
        wanted = torch.arange(len(tokens), device=self._device) if every else self._tensor(ends)
        logits: torch.Tensor = self._model(tokens, positions, self._cache, step, wanted)
        return logits

    def _flatten(self, chunks: list[Chunk]) -> tuple[torch.Tensor, list[AttentionRow], list[int]]:
        """Token ids, positions and cache slots ``[3, tokens]``; the rows; which tokens sample."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[AttentionRow] = []
        ends: list[int] = []
        for chunk in chunks:
            sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.count
            rows.append(self._row(chunk, len(tokens)))
            tokens += sequence.tokens[start:end]
            positions += range(start, end)
            if sequence.first_block is not None:
                base = sequence.first_block * BLOCK_TOKENS
                slots += range(base + start, base + end)
            else:
                blocks = sequence.blocks
                slots += (
                    blocks[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
                    for at in range(start, end)
                )
            if chunk.samples:
                ends.append(len(tokens) - 1)
        return self._tensor([tokens, positions, slots]), rows, ends

    def _row(self, chunk: Chunk, at: int) -> AttentionRow:
        sequence = chunk.sequence
        scattered = sequence.first_block is None
        blocks = self._tensor(sequence.blocks) if scattered else None
        return AttentionRow(at, chunk.count, chunk.start, sequence.first_block, blocks)

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
