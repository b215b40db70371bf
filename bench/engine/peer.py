"""The contract of everything that is measured, and the list of it.

Owns the contestants' names. Must not import any of them: their libraries are heavy, and one
process loads one contestant only.
"""

from enum import StrEnum
from typing import Protocol

import msgspec

from bench.engine.loads import Kind, Request, Trace


class Maker(StrEnum):
    """Whose code computes."""

    OURS = "ours"
    GENERATE = "generate"
    """transformers' ``generate``: static batches."""
    CONTINUOUS = "cb"
    """transformers' continuous batching."""
    LLAMA = "llama"
    """llama.cpp."""


class Contestant(msgspec.Struct, frozen=True):
    """One column of the table."""

    maker: Maker
    dtype: str
    """``auto``, ``float32``, ``bfloat16``; for llama.cpp the type of the GGUF file."""
    exact: bool = False
    """Ours only."""

    @property
    def quantised(self) -> bool:
        return self.dtype.startswith("q")

    @property
    def name(self) -> str:
        short = {"float32": "fp32", "bfloat16": "bf16"}.get(self.dtype, self.dtype)
        mode = ("-exact" if self.exact else "-inexact") if self.maker is Maker.OURS else ""
        return f"{self.maker}-{short}{mode}"


DTYPES = ("float32", "bfloat16")
GGUF_TYPES = ("bf16", "f16", "q8_0")
_ALL = (
    *(Contestant(Maker.OURS, d, exact=e) for d in ("auto", *DTYPES) for e in (True, False)),
    *(Contestant(m, d) for m in (Maker.GENERATE, Maker.CONTINUOUS) for d in DTYPES),
    *(Contestant(Maker.LLAMA, d) for d in GGUF_TYPES),
)
CONTESTANTS = {contestant.name: contestant for contestant in _ALL}
DEFAULT = tuple(name for name in CONTESTANTS if not name.startswith(("ours-fp32", "ours-bf16")))


class Settings(msgspec.Struct, frozen=True):
    """What every contestant is told."""

    model_dir: str
    threads: int
    max_context: int = 2048
    kv_tokens: int = 11_000
    """Room for every load at once: the largest is 8 sequences of 1,000 tokens and their answers."""


class Peer(Protocol):
    """A loaded model."""

    kinds: frozenset[Kind]
    """The kinds of load that it can run."""
    about: str
    """Versions and settings, for the report."""

    def decode(self, prompts: list[list[int]], steps: int, *, sampled: bool) -> list[float]:
        """Seconds of *steps* steps, each of which gives one more token to every prompt.

        Timed from the moment when all prompts are computed. *sampled*: temperature 1 and top-p
        0.95, with no other truncation; else greedy. No token ends an answer.
        """
        ...

    def serve(self, requests: list[Request]) -> list[Trace]:
        """Answers *requests* greedily as they arrive."""
        ...
