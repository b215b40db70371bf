"""Long answers, as they come out of streams, and how long anything holds the processor."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cortex.api.dialects.base import Dialect
from cortex.api.dialects.registry import DIALECTS
from cortex.api.dialects.sse_writer import Head
from cortex.streams.events import Ended, Parts
from protocol.frames import AnswerPart, Text
from protocol.generate import FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage

T = TypeVar("T")
ID = "0123456789abcdefghijkl"
BODIES = {
    "openai_chat": b'{"model": "m", "messages": [{"role": "user", "content": "Go"}], '
    b'"logprobs": true, "top_logprobs": 20, "n": 1}',
    "openai_completions": b'{"model": "m", "prompt": "Go", "logprobs": 20}',
    "openai_responses": b'{"model": "m", "input": "Go", "top_logprobs": 20}',
    "anthropic_messages": b'{"model": "m", "messages": [{"role": "user", "content": "Go"}], '
    b'"max_tokens": 99}',
}


def asked(name: str, choices: int = 1) -> tuple[Dialect, Head]:
    """A dialect, and the head of an answer with as many log-probabilities as it has."""
    dialect = DIALECTS[name]
    call = dialect.decode(BODIES[name])
    return dialect, Head(ID, "m", 1_700_000_000, choices, call.include_usage, call.echo)


def token(number: int, top: int = 20) -> Text:
    """One token with its log-probability, and the likeliest ones in its place."""
    said = b" t%d" % (number % 5000)
    others = (
        TokenLogprob(b" w%d" % ((number * 7 + k) % 30_000), -0.25 - k * 0.37 - number * 1e-7)
        for k in range(top)
    )
    return Text(said.decode(), (TokenLogprobs(said, -0.25, tuple(others)),))


def events(parts: Sequence[AnswerPart]) -> list[Parts]:
    """One event per token."""
    return [Parts((part,), 1, index) for index, part in enumerate(parts, 1)]


def end(tokens: int) -> Ended:
    return Ended(FinishReason.STOP, Usage(5, tokens), Timings())


def cpu_seconds(act: Callable[[], object]) -> float:
    """The processor's time, which other processes do not change much."""
    began = time.process_time()
    act()
    return time.process_time() - began


async def longest_hold(act: Awaitable[T]) -> tuple[T, float]:
    """Returns what *act* does, and for how long at most anything held this event loop meanwhile, in
    seconds of its CPU."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            longest = max(longest, time.process_time() - before)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        done = await act
        await asyncio.sleep(0)  # its last step counts, too
        return done, longest
    finally:
        watching.cancel()
