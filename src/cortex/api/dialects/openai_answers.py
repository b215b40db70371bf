"""What the answers of OpenAI's endpoints have in common."""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from protocol.generate import FinishReason, TokenLogprobs, Usage

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""Stands in for minus infinity, which JSON cannot express."""
FINGERPRINT = "fp_cortex"
"""Clients may compare it; null violates the schema."""


class PromptDetails(Struct, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Struct, frozen=True):
    """What the answer's tokens were used for."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageOut(Struct, frozen=True):
    """The token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def finish_text(reason: FinishReason) -> str:
    """Returns OpenAI's word for why an answer ended."""
    return "stop" if reason is FinishReason.CANCELLED else str(reason)


def usage_out(usages: Sequence[Usage], prompts: int = 1) -> UsageOut:
    """Adds up the counts of an answer's choices, which belong to several prompts in equal parts and
    in order. Each prompt is counted once, as it was computed for its first choice."""
    firsts = usages[:: max(1, len(usages) // prompts)]
    total = Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
    return UsageOut(
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
        total_tokens=total.prompt_tokens + total.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=total.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=total.reasoning_tokens),
    )


class LogprobOut(Struct, frozen=True, gc=False):
    """A token and its log-probability. The garbage collector need not look at it: there are up to
    twenty of them per token of an answer."""

    token: str
    logprob: float
    bytes: list[int]


class TokenOut(Struct, frozen=True, gc=False):
    """A token of the answer, and the likeliest tokens in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[LogprobOut]


def logprob_items(entries: Iterable[TokenLogprobs]) -> bytes:
    """Renders one object per token, with commas between them."""
    return msgspec.json.encode(
        [
            TokenOut(
                entry.token.decode(errors="replace"),
                _finite(entry.logprob),
                list(entry.token),
                [
                    LogprobOut(
                        top.token.decode(errors="replace"), _finite(top.logprob), list(top.token)
                    )
                    for top in entry.top
                ],
            )
            for entry in entries
        ]
    )[1:-1]


def _finite(logprob: float | None) -> float:
    return max(logprob or 0.0, LEAST_LOGPROB)
