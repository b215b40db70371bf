"""Answers that depend on nothing but the request, so that every disturbance shows."""

import random
import zlib
from functools import lru_cache

from neuron.ipc.messages import Add


@lru_cache(maxsize=1024)
def words(seed: int, count: int) -> tuple[str, ...]:
    """The answer's tokens as texts: with another seed, others."""
    chance = random.Random(seed)
    return tuple(f" {chance.randrange(10**6)}" for _ in range(count))


def answer(add: Add) -> tuple[str, ...]:
    """A scripted engine's answer: as many words as it may have."""
    return words(add.sample.seed, add.sample.max_tokens)


def token_of(text: str) -> int:
    """A scripted token's id."""
    return zlib.crc32(text.encode()) % 100_000
