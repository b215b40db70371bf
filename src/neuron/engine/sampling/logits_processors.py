"""Applies a request's changes to its logits before a token is sampled.

The order is vLLM's: allowed tokens, bad tokens, min_tokens, bias, penalties. Owns a table for each
sequence that asks for any of these; the rows of others are never touched. Must not know how the
token is sampled.

At least one token always stays allowed. A set of allowed tokens that bad tokens would empty was
refused before (``admission.py``); where min_tokens would forbid the last allowed tokens, because
all of them are end tokens, it gives way.
"""

import torch

from neuron.engine.sampling.penalties import Penalties, penalises
from neuron.ipc.messages import SamplingParams


def needs_processing(sample: SamplingParams) -> bool:
    """Whether *sample* changes logits at all."""
    return bool(
        (sample.min_tokens > 0 and sample.end_tokens)
        or sample.logit_bias
        or sample.allowed_tokens is not None
        or sample.bad_tokens
        or penalises(sample)
    )


class LogitsProcessor:
    """The tables of one sequence, from its *sample* and *prompt*; grows with the answer."""

    def __init__(
        self, sample: SamplingParams, prompt: list[int], vocab: int, device: torch.device
    ) -> None:
        def table(tokens: set[int]) -> torch.Tensor:
            return torch.tensor(sorted(tokens), dtype=torch.int64, device=device)

        bad, ends = set(sample.bad_tokens), set(sample.end_tokens)
        allowed = None if sample.allowed_tokens is None else set(sample.allowed_tokens) - bad
        left = vocab - len(bad | ends) if allowed is None else len(allowed - ends)
        self._allowed = None if allowed is None else table(allowed)
        self._bad = table(bad) if bad and allowed is None else None
        self._ends = table(ends) if ends and left > 0 else None
        self._min_tokens = sample.min_tokens
        bias = sample.logit_bias
        self._biased = table({token for token, _ in bias}) if bias else None
        self._bias = torch.tensor([value for _, value in sorted(bias)], device=device)
        self._penalties = Penalties(sample, device) if penalises(sample) else None
        self._answered = 0
        if self._penalties is not None:
            self._penalties.add_prompt(prompt)

    def catch_up(self, tokens: list[int], prompt_tokens: int) -> None:
        """Takes the answer tokens that *tokens* (prompt and answer) gained since last time."""
        if self._penalties is not None:
            for token in tokens[prompt_tokens + self._answered :]:
                self._penalties.add(token)
        self._answered = len(tokens) - prompt_tokens

    def apply(self, logits: torch.Tensor, generated: int) -> None:
        """Changes the *logits* ``[vocab]`` of the answer token with index *generated*."""
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits.fill_(-torch.inf)
            logits[self._allowed] = kept
        if self._bad is not None:
            logits[self._bad] = -torch.inf
        if self._ends is not None and generated < self._min_tokens:
            logits[self._ends] = -torch.inf
        if self._biased is not None:
            logits[self._biased] += self._bias
        if self._penalties is not None:
            assert generated == self._answered
            self._penalties.apply(logits)


class LogitsProcessors:
    """The logits processors of all sequences that need one, by sequence id."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._vocab, self._device = vocab, device
        self._tables: dict[int, LogitsProcessor] = {}

    def of(
        self, sequence: int, sample: SamplingParams, tokens: list[int], prompt_tokens: int
    ) -> LogitsProcessor | None:
        """The processor of a sequence with prompt and answer *tokens*; None if it needs none."""
        if not needs_processing(sample):
            return None
        table = self._tables.get(sequence)
        if table is None:
            prompt = tokens[:prompt_tokens]
            table = LogitsProcessor(sample, prompt, self._vocab, self._device)
            self._tables[sequence] = table
        table.catch_up(tokens, prompt_tokens)
        return table

    def forget(self, sequence: int) -> None:
        """Drops the processor of a sequence that has ended."""
        self._tables.pop(sequence, None)
