"""The penalties on tokens that a sequence already contains.

The table is derived only from the sequence's tokens and grows with them, one entry at a time; it
changes as many logits as it has entries. Must not know where a sequence is computed or when it
stops: a table rebuilt from the same tokens gives the same logits.
"""

import torch

from neuron.ipc.messages import SamplingParams

_FIRST_ENTRIES = 64


def penalises(sample: SamplingParams) -> bool:
    """Whether *sample* has any penalty."""
    return (
        sample.repetition_penalty != 1
        or sample.frequency_penalty != 0
        or sample.presence_penalty != 0
    )


class Penalties:
    """The penalties of one sequence.

    Defined as by OpenAI (presence, frequency) and CTRL (arXiv 1909.05858; repetition).
    """

    def __init__(self, sample: SamplingParams, device: torch.device) -> None:
        self._sample = sample
        self._places: dict[int, int] = {}  # token id → entry
        self._ids = torch.zeros(_FIRST_ENTRIES, dtype=torch.int64, device=device)
        self._counts = torch.zeros(_FIRST_ENTRIES, device=device)  # in the answer

    def add_prompt(self, tokens: list[int]) -> None:
        """Takes the prompt, before the answer. Only the repetition penalty uses it."""
        if self._sample.repetition_penalty != 1:
            new = torch.tensor(list(dict.fromkeys(tokens)), device=self._ids.device)
            self._reserve(len(new))
            self._ids[: len(new)] = new
            self._places = {token: place for place, token in enumerate(new.tolist())}

    def add(self, token: int) -> None:
        """Takes the next token of the answer."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            self._reserve(place + 1)
            self._ids[place] = token
        self._counts[place] += 1

    def apply(self, logits: torch.Tensor) -> None:
        """Changes the logits ``[vocab]`` of the next token."""
        sample, used = self._sample, len(self._places)
        ids, counts = self._ids[:used], self._counts[:used]
        values = logits[ids]
        banned = values == -torch.inf
        if sample.repetition_penalty != 1:
            penalty = sample.repetition_penalty
            values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - sample.frequency_penalty * counts
        values -= sample.presence_penalty * (counts > 0)
        # -inf marks a forbidden token; an allowed one must not become -inf, nor +inf.
        limit = torch.finfo(torch.float32).max
        logits[ids] = values.clamp_(-limit, limit).masked_fill_(banned, -torch.inf)

    def _reserve(self, entries: int) -> None:
        missing = entries - len(self._ids)
        if missing > 0:  # doubling: growing to n entries copies fewer than n entries
            more = max(missing, len(self._ids))
            self._ids = torch.cat((self._ids, self._ids.new_zeros(more)))
            self._counts = torch.cat((self._counts, self._counts.new_zeros(more)))
