"""What the contestants are given to do: prompts, answers and arrivals, made from a seed.

Owns the loads' sizes. Must not know any contestant. Every sample has prompts of its own, so that
no cache of an earlier one answers it.
"""

import random
from enum import StrEnum

import msgspec

FIRST_TOKEN, LAST_TOKEN = 1000, 150_000
"""Prompts are drawn from these, or from the whole vocabulary where it is smaller."""


class Kind(StrEnum):
    """How a load is run and what is read from it."""

    PREFILL = "prefill"
    """One prompt, one token: tokens per second of the prompt."""
    DECODE = "decode"
    """A full batch, steps timed once every prompt is computed."""
    PREFIX = "prefix"
    """A prompt, and when it has ended another one that begins as it does: time to first token."""
    MIXED = "mixed"
    """Requests that arrive as they please: throughput and latencies."""


class Load(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    kind: Kind
    batch: int = 1
    """Sequences; for MIXED, requests."""
    context: int = 64
    """Tokens of a prompt; for PREFIX, those that both prompts begin with."""
    steps: int = 1
    """Steps that are timed."""
    sampled: bool = False
    """Temperature 1 and top-p 0.95 instead of greedy; compared with GUIDE, which is greedy."""
    rate: float = 0.0
    """MIXED: arrivals per second."""
    repeats: int = 3
    heavy: bool = False
    """Takes minutes: of each peer only what was quickest at GUIDE runs it; nothing quantised."""


class Request(msgspec.Struct, frozen=True):
    """A prompt and how many tokens to answer with."""

    prompt: list[int]
    max_tokens: int
    arrival_seconds: float | None = 0.0
    """After the start; None: once every request before it has ended."""


class Trace(msgspec.Struct):
    """What became of a request; seconds after the start."""

    arrived: float
    times: list[float] = []
    """When each token of the answer was there."""


GUIDE = "decode 8"
LOADS = (
    Load("prefill 128", Kind.PREFILL, context=128),
    Load("prefill 512", Kind.PREFILL, context=512, repeats=2),
    Load("decode 1", Kind.DECODE, batch=1, steps=16),
    Load("decode 8", Kind.DECODE, batch=8, steps=10, repeats=2),
    Load("decode 8 top-p", Kind.DECODE, batch=8, steps=10, sampled=True, repeats=2),
    Load("decode 32", Kind.DECODE, batch=32, steps=5, repeats=1, heavy=True),
    Load("prefix 512", Kind.PREFIX, context=512, repeats=2),
    Load("decode 8 at 1000", Kind.DECODE, batch=8, context=1000, steps=6, repeats=1, heavy=True),
    Load("mixed", Kind.MIXED, batch=24, rate=0.5, repeats=1, heavy=True),
)
PROMPT_RANGE, ANSWER_RANGE = (32, 512), (16, 64)
"""Tokens of the requests of MIXED, uniformly."""
SUFFIX_TOKENS = 32
"""PREFIX: what follows the shared beginning."""


def prompts(load: Load, seed: int, vocab: int) -> list[list[int]]:
    """The prompts of a DECODE load."""
    draw = random.Random(f"{load.name} {seed}")
    return [_tokens(draw, load.context, vocab) for _ in range(load.batch)]


def requests(load: Load, seed: int, vocab: int) -> list[Request]:
    """The requests of any other load."""
    draw = random.Random(f"{load.name} {seed}")
    if load.kind is Kind.PREFILL:
        return [Request(_tokens(draw, load.context, vocab), 1)]
    if load.kind is Kind.PREFIX:
        shared = _tokens(draw, load.context, vocab)
        first, second = (shared + _tokens(draw, SUFFIX_TOKENS, vocab) for _ in range(2))
        return [Request(first, 1), Request(second, 1, None)]
    assert load.kind is Kind.MIXED
    arrival, made = 0.0, []
    for _ in range(load.batch):
        prompt = _tokens(draw, draw.randint(*PROMPT_RANGE), vocab)
        made.append(Request(prompt, draw.randint(*ANSWER_RANGE), arrival))
        arrival += draw.expovariate(load.rate)
    return made


def _tokens(draw: random.Random, count: int, vocab: int) -> list[int]:
    low, high = (FIRST_TOKEN, LAST_TOKEN) if vocab > LAST_TOKEN else (0, vocab - 1)
    return [draw.randint(low, high) for _ in range(count)]
