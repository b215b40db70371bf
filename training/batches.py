"""The training stream as padded tensors, with the loss only where the assistant writes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import render
from training.data import Example, examples
from training.split import is_held_out
from training.tokenizer import END, PAD, START, token_id

TOKENS_PER_BATCH = 2048
_POOL = 4096
"""Examples that are sorted by length together."""
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded: under a causal mask, padding after the text disturbs nothing."""

    inputs: Tensor
    """(examples, positions) token ids."""
    targets: Tensor
    """(examples, positions) the next token's id, or -100 where nothing is to be learned."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example's tokens, and which of them the loss is about."""

    ids: list[int]
    learned: list[bool]


class Encoder:
    """Writes examples as the engine would see them: the prompt, then what is generated."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = token_id(tokenizer, START)
        self._end = token_id(tokenizer, END)
        self._assistant = tokenizer.encode("assistant").ids

    def encode(self, example: Example) -> Encoded:
        """The prompt's tokens and the completion's, apart, as in generation."""
        text = render.prompt(example.messages, example.tools, enable_thinking=example.thinking)
        prompt = self._tokenizer.encode(text).ids
        completion = [*self._tokenizer.encode(example.completion).ids, self._end]
        learned = [*self._earlier_answers(prompt), *([True] * len(completion))]
        return Encoded(prompt + completion, learned)

    def _earlier_answers(self, ids: list[int]) -> list[bool]:
        """Marks earlier assistant turns, less their first token.

        That one would teach to answer without a thought, which the last turn must not learn.
        """
        learned = [False] * len(ids)
        head = [self._start, *self._assistant]
        for position in range(len(ids) - len(head)):
            if ids[position : position + len(head)] != head or self._end not in ids[position:]:
                continue
            first = position + len(head) + 2  # past the line break and the first token
            end = ids.index(self._end, position)
            learned[first : end + 1] = [True] * (end + 1 - first)
        return learned


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Batches of about equal size in tokens, each of examples of about equal length."""
    rng = random.Random(seed)
    stream = examples(seed)
    encoder = Encoder(tokenizer)
    pad = token_id(tokenizer, PAD)
    while True:
        pool = []
        for example in islice(stream, _POOL):
            leaked = [item for item in example.items if is_held_out(item.kind, item.key)]
            assert not leaked, f"held-out items in the training stream: {leaked}"
            pool.append(encoder.encode(example))
        pool.sort(key=lambda encoded: len(encoded.ids))
        groups = list(_groups(pool))
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, pad)


def _groups(pool: list[Encoded]) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for encoded in pool:
        if group and len(encoded.ids) * (len(group) + 1) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(encoded)
    yield group


def _padded(group: list[Encoded], pad: int) -> Batch:
    width = max(len(encoded.ids) for encoded in group) - 1
    inputs = torch.full((len(group), width), pad)
    targets = torch.full((len(group), width), _IGNORED)
    for row, encoded in enumerate(group):
        length = len(encoded.ids) - 1
        inputs[row, :length] = torch.tensor(encoded.ids[:-1])
        following = torch.tensor(encoded.ids[1:])
        learned = torch.tensor(encoded.learned[1:])
        targets[row, :length] = torch.where(learned, following, _IGNORED)
    return Batch(inputs, targets)
