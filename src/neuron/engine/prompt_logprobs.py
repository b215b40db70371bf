"""Log-probabilities of prompts, collected chunk by chunk while they are computed.

The logits of a whole chunk are never there at once: the head is applied to slices whose logits fit
``logprobs.SLICE_BYTES``, whatever the chunk and the vocabulary. Owns what has been collected of
each sequence until it is taken; must not know the model behind the head.
"""

from collections.abc import Callable

import torch

from neuron.engine.sampling.logprobs import logprobs, slice_rows
from neuron.engine.scheduler import Chunk
from neuron.ipc.messages import Logprobs

Head = Callable[[list[int]], torch.Tensor]
"""Rows of the batch → their float32 logits ``[rows, vocab]``."""


class PromptLogprobs:
    """What is known so far of the prompts that ask."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._found: dict[int, list[Logprobs]] = {}

    def add(self, chunk: Chunk, first: int, head: Head) -> bool:
        """Scores the prompt tokens that follow those of *chunk*, whose rows begin with *first*.

        Nothing happens for a sequence that does not ask or has answer tokens: then its prompt was
        reported before. One whose prompt is computed anew begins anew. Returns False where the
        logits are not finite.
        """
        sequence = chunk.sequence
        top = sequence.sample.prompt_logprobs
        if top is None or sequence.generated > 0:
            return True
        if chunk.start == 0:
            self._found[sequence.id] = []
        found = self._found[sequence.id]
        # Every token's own score is at the place before it. A prompt must be computed from its
        # first token on: a cached prefix has no logits.
        assert len(found) == chunk.start
        next_tokens = sequence.tokens[chunk.start + 1 : chunk.start + chunk.count + 1]
        rows = slice_rows(self._vocab)
        for at in range(0, len(next_tokens), rows):
            tokens = next_tokens[at : at + rows]
            logits = head(list(range(first + at, first + at + len(tokens))))
            if not bool(logits.sum().isfinite()):
                return False
            found += logprobs(logits, tokens, [top] * len(tokens))
        return True

    def take(self, sequence: int) -> list[Logprobs] | None:
        """What a sequence has, once; None if it did not ask."""
        return self._found.pop(sequence, None)
