"""Carries out a plan: one flat batch through the model, then a token for every row that asks.

Owns the tensors of a step. Must not know queues, text or messages beyond the sampling parameters.
"""

import torch

from neuron.engine.adjust import Adjustments
from neuron.engine.blocks import BLOCK_TOKENS
from neuron.engine.messages import Logprobs
from neuron.engine.probe import KernelPath
from neuron.engine.prompt_scores import PromptScores
from neuron.engine.sampler import Chosen, SampleRow, choose
from neuron.engine.scheduler import Plan
from neuron.engine.sequence import Sequence
from neuron.layers.attention import AttentionRow
from neuron.layers.cache import KVCache
from neuron.models.decoder import Decoder


class EngineFault(Exception):
    """Raised when the engine cannot go on; it becomes a ``Fatal`` message."""


class PoisonedLogits(EngineFault):
    """Raised when the model computes NaN or infinity."""


class Runner:
    """A model, its KV cache and the device they live on."""

    def __init__(self, model: Decoder, cache: KVCache, path: KernelPath) -> None:
        self._model = model
        self._cache = cache
        self._path = path
        self._windows = set(model.config.windows)
        self._group = model.config.heads // model.config.kv_heads
        self._adjustments = Adjustments(model.config.vocab_size, model.device)
        self._prompt_scores = PromptScores(model.config.vocab_size)

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for sampling a sequence that is over."""
        self._adjustments.forget(sequence_id)
        self._prompt_scores.take(sequence_id)

    def take_prompt_logprobs(self, sequence_id: int) -> list[Logprobs] | None:
        """Those of a sequence whose prompt has been computed, once; None if it did not ask."""
        return self._prompt_scores.take(sequence_id)

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[Chosen]:
        """Computes *plan*; returns the next token of each chunk that samples, in order.

        Raises :class:`PoisonedLogits` when a row's logits are not finite.
        """
        logits = self._step_logits(plan)
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        if not sampling:
            return []
        chosen = choose(logits, [self._sample_row(sequence) for sequence in sampling])
        tokens = [one.token for one in chosen]
        if -1 in tokens:
            raise _poisoned(sampling[tokens.index(-1)])
        return chosen

    def _sample_row(self, s: Sequence) -> SampleRow:
        adjustment = self._adjustments.of(s.id, s.sample, s.tokens, s.prompt_tokens)
        return SampleRow(s.sample, s.prompt_tokens, s.generated, adjustment)

    def _step_logits(self, plan: Plan) -> torch.Tensor:
        """The logits of the rows that sample; scores prompts that ask on the way."""
        hidden, ends = self._hidden(plan)
        at = 0
        for chunk in plan.chunks:
            part = hidden[at : at + chunk.count]
            if not self._prompt_scores.add(chunk, part, self._model.logits):
                raise _poisoned(chunk.sequence)
            at += chunk.count
        if not ends:  # only prefill, so far
            return hidden.new_empty(0, self._model.config.vocab_size, dtype=torch.float32)
        return self._model.logits(hidden[self._tensor(ends)])

    @torch.inference_mode()
    def logits(self, plan: Plan, *, every: bool = False) -> torch.Tensor:
        """Computes *plan* and returns float32 logits ``[rows, vocab]``.

        A row for each chunk that samples, or with *every* for each token of the batch.
        """
        hidden, ends = self._hidden(plan)
        return self._model.logits(hidden if every else hidden[self._tensor(ends)])

    def _hidden(self, plan: Plan) -> tuple[torch.Tensor, list[int]]:
        """The last layer's output ``[tokens, hidden]``, and which tokens sample."""
        self._cache.copy(plan.copies)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[AttentionRow] = []
        ends: list[int] = []
        for chunk in plan.chunks:
            sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.count
            rows.append(AttentionRow(len(tokens), chunk.count, start, sequence.blocks))
            tokens += sequence.tokens[start:end]
            positions += range(start, end)
            slots += _slots(sequence.blocks, start, end)
            if chunk.samples:
                ends.append(len(tokens) - 1)
        step = self._path.step(
            rows, self._tensor(slots), self._windows, self._cache.dtype, self._group
        )
        flat, at = self._tensor(tokens), self._tensor(positions)
        return self._model.hidden(flat, at, self._cache, step), ends

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.device)


def _slots(blocks: list[int], start: int, end: int) -> list[int]:
    """Where the tokens ``start … end`` of a block table lie: block * 16 + offset."""
    slots: list[int] = []
    while start < end:
        index, offset = divmod(start, BLOCK_TOKENS)
        count = min(end - start, BLOCK_TOKENS - offset)
        first = blocks[index] * BLOCK_TOKENS + offset
        slots += range(first, first + count)
        start += count
    return slots


def _poisoned(sequence: Sequence) -> PoisonedLogits:
    return PoisonedLogits(
        f"the model computed NaN or infinity after {sequence.total} tokens of a sequence; "
        "the weights or the device are faulty, or the dtype is too narrow for this model"
    )
