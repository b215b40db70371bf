"""Prompt logprobs, collected chunk by chunk as the prompt is computed.

The logits of a whole chunk never exist at once: the head is applied to slices whose logits fit into
``logprobs.SLICE_BYTES``, whatever the sizes of chunk and vocabulary. Owns what has been collected
for each sequence until it is taken. Must not know the model behind the head.
"""

from collections.abc import Callable

import torch

from neuron.engine.sampling.logprobs import logprobs, slice_rows
from neuron.engine.scheduler import Chunk
from neuron.ipc.messages import Logprobs

Head = Callable[[list[int]], torch.Tensor]
"""Maps rows of the batch to their float32 logits ``[rows, vocab]``."""


class PromptLogprobs:
    """The prompt logprobs known so far, of the sequences that ask for them."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._found: dict[int, list[Logprobs]] = {}

    def add(self, chunk: Chunk, first: int, head: Head) -> bool:
        """Computes the logprobs of the prompt tokens that follow those of *chunk*.

        *first* is the chunk's first row. Does nothing for a sequence that does not ask, or that has
        answer tokens: its prompt was reported before. A prompt that is recomputed starts over.
        Returns False if the logits are not finite.
        """
        sequence = chunk.sequence
        top = sequence.sample.prompt_logprobs
        if top is None or sequence.generated > 0:
            return True
        if chunk.start == 0:
            self._found[sequence.id] = []
        found = self._found[sequence.id]
        # A token's logprob comes from the position before it. The prompt must be computed from its
        # first token on, because a cached prefix has no logits.
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
        """Returns a sequence's prompt logprobs once; None if it did not ask."""
        return self._found.pop(sequence, None)
