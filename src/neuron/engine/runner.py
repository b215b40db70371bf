"""Executes a plan: one flat batch through the model, then a token for every row that samples.

Tells the other ranks what to compute with it. Must not know queues, text, or messages other than
the sampling parameters.
"""

import torch

from neuron.engine.forward import Forward
from neuron.engine.prompt_logprobs import PromptLogprobs
from neuron.engine.ranks.broadcast import RankBroadcast
from neuron.engine.sampling.logits_processors import LogitsProcessors
from neuron.engine.sampling.sampler import Chosen, SampleRow, choose
from neuron.engine.scheduler import Chunk, StepPlan
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import Logprobs
from neuron.ipc.rank_commands import Compute, Project, SequenceTokens


class EngineFault(Exception):
    """Raised when the engine cannot go on; it is sent as a ``Fatal`` message."""


class PoisonedLogits(EngineFault):
    """Raised when the model computes NaN or infinity."""


class Runner:
    """The model as rank 0 uses it, alone or leading other ranks."""

    def __init__(self, forward: Forward, leader: RankBroadcast | None = None) -> None:
        self._forward = forward
        self._leader = leader or RankBroadcast()
        self._step = 0
        vocab = forward.model.config.vocab_size
        self._processors = LogitsProcessors(vocab, forward.model.device)
        self._prompt_logprobs = PromptLogprobs(vocab)

    def forget(self, sequence_id: int) -> None:
        """Drops the sampling state of a sequence that has ended."""
        self._processors.forget(sequence_id)
        self._prompt_logprobs.take(sequence_id)

    def take_prompt_logprobs(self, sequence_id: int) -> list[Logprobs] | None:
        """Returns the prompt logprobs of a computed prompt, once; None if not requested."""
        return self._prompt_logprobs.take(sequence_id)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Chosen]:
        """Computes *plan* and returns the next token of each chunk that samples, in order.

        Raises :class:`PoisonedLogits` when a row's logits are not finite.
        """
        self._compute(plan)
        at = 0
        for chunk in plan.chunks:
            if not self._prompt_logprobs.add(chunk, at, self._logits):
                raise _poisoned(chunk.sequence)
            at += chunk.count
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        if not sampling:
            return []
        logits = self._logits(_ends(plan))
        chosen = choose(logits, [self._sample_row(sequence) for sequence in sampling])
        tokens = [one.token for one in chosen]
        if -1 in tokens:
            raise _poisoned(sampling[tokens.index(-1)])
        return chosen

    def _sample_row(self, s: Sequence) -> SampleRow:
        processor = self._processors.of(s.id, s.sample, s.tokens, s.prompt_tokens)
        return SampleRow(s.sample, s.prompt_tokens, s.generated, processor)

    @torch.inference_mode()
    def logits(self, plan: StepPlan, *, every: bool = False) -> torch.Tensor:
        """Computes *plan* and returns float32 logits ``[rows, vocab]``.

        There is one row per chunk that samples or, with *every*, one per token of the batch.
        """
        self._compute(plan)
        return self._logits(list(range(plan.tokens)) if every else _ends(plan))

    def _compute(self, plan: StepPlan) -> None:
        self._step += 1
        batch = Compute(self._step, [_piece(chunk) for chunk in plan.chunks], plan.copies)
        self._leader.tell(batch)
        self._forward.compute(batch)

    def _logits(self, rows: list[int]) -> torch.Tensor:
        self._leader.tell(Project(self._step, rows))
        return self._forward.logits(rows)


def _piece(chunk: Chunk) -> SequenceTokens:
    sequence, end = chunk.sequence, chunk.start + chunk.count
    tokens = sequence.tokens[chunk.start : end]
    return SequenceTokens(sequence.id, tokens, chunk.start, sequence.blocks)


def _ends(plan: StepPlan) -> list[int]:
    """Indices of the batch's rows that sample."""
    at, ends = 0, []
    for chunk in plan.chunks:
        at += chunk.count
        if chunk.samples:
            ends.append(at - 1)
    return ends


def _poisoned(sequence: Sequence) -> PoisonedLogits:
    return PoisonedLogits(
        f"the model computed NaN or infinity after {sequence.total} tokens of a sequence; "
        "the weights or the device are faulty, or the dtype is too narrow for this model"
    )
