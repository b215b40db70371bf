"""The training stream as padded tensors, with the loss only where the assistant writes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import phrases, render
from training.data import Example, drills, examples
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


def batches(tokenizer: Tokenizer, stream: Iterator[Example], seed: int) -> Iterator[Batch]:
    """Batches of about equal size in tokens, each of examples of about equal length."""
    rng = random.Random(seed)
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


def copying_batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Batches that ask to repeat random tokens, in the form of a chat.

    To look up and copy what stands in the prompt is the one ability that most skills rest on, and
    the conversations alone taught it too slowly: after two million tokens the model still could
    not repeat a word. A thousand of these batches, mixed in, bring it about.
    """
    rng = random.Random(seed)
    pad, end = token_id(tokenizer, PAD), token_id(tokenizer, END)
    ordinary = range(min(token_id(tokenizer, token) for token in (PAD, START, END)))
    shells = [_around_words(tokenizer, repeat) for repeat in phrases.REPEATS]
    while True:
        length = rng.randint(2, 24)
        group: list[Encoded] = []
        while not group or len(group) * len(group[0].ids) < TOKENS_PER_BATCH:
            before, after = rng.choice(shells)
            content = rng.choices(ordinary, k=length)
            prompt = [*before, *content, *after]
            learned = [False] * len(prompt) + [True] * (length + 1)
            group.append(Encoded([*prompt, *content, end], learned))
        yield _padded(group, pad)


def _around_words(tokenizer: Tokenizer, repeat: str) -> tuple[list[int], list[int]]:
    """The tokens before and after the words in a prompt that asks to repeat them."""
    messages = [{"role": "user", "content": repeat.format(words="\0")}]
    before, after = render.prompt(messages, enable_thinking=False).split("\0")
    return tokenizer.encode(before).ids, tokenizer.encode(after).ids


def mixed_batches(
    tokenizer: Tokenizer, seed: int, is_copying_phase: Callable[[], bool]
) -> Iterator[Batch]:
    """Conversations and drills by turns; in the copying phase, two batches in three copy."""
    copying = copying_batches(tokenizer, seed)
    conversations = batches(tokenizer, examples(seed), seed)
    arithmetic = batches(tokenizer, drills(seed), seed)
    for number in count():
        if is_copying_phase() and number % 3:
            yield next(copying)
        else:
            yield next(arithmetic if number % 2 else conversations)


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
