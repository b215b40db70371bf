"""Which requests can run here at all: the checks before a sequence is queued; no torch.

The service has checked what a person can get wrong; this is the engine's own guard, so that no
input reaches an assertion or poisons a batch.
"""

import math

from neuron.engine.messages import Add, Refused, Sample
from protocol.errors import ErrorCode


def refusal(add: Add, *, context_limit: int, vocab_size: int) -> Refused | None:
    """Why *add* can never run, or None.

    ``context_length_exceeded`` when no token of an answer fits behind the prompt,
    ``invalid_request`` for everything else.
    """
    tokens = len(add.prompt) + len(add.generated)
    if not add.prompt:
        return _invalid(add.id, "The prompt has no tokens. Send at least one.")
    for token in (*add.prompt, *add.generated):
        if not 0 <= token < vocab_size:
            return _invalid(
                add.id,
                f"Token id {token} does not exist: the model has {vocab_size}. "
                "Tokenise with this model's own tokenizer.",
            )
    if len(add.prompt) >= context_limit or tokens > context_limit:
        return Refused(
            add.id,
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"The prompt has {tokens} tokens; this model takes {context_limit} with at least one "
            "for the answer. Shorten the conversation.",
        )
    fault = _sample_fault(add.sample, vocab_size)
    return None if fault is None else _invalid(add.id, fault)


def _sample_fault(sample: Sample, vocab_size: int) -> str | None:
    checks = (
        ("max_tokens", sample.max_tokens, sample.max_tokens >= 1, "at least 1"),
        (
            "temperature",
            sample.temperature,
            sample.temperature >= 0 and math.isfinite(sample.temperature),
            "a number from 0",
        ),
        ("top_k", sample.top_k, 0 <= sample.top_k < 2**31, "at least 0 and below 2**31"),
        ("choice", sample.choice, sample.choice >= 0, "at least 0"),
        ("top_p", sample.top_p, 0 <= sample.top_p <= 1, "between 0 and 1"),
        ("min_p", sample.min_p, 0 <= sample.min_p <= 1, "between 0 and 1"),
        ("stop", "an empty text", "" not in sample.stop, "texts with at least one character"),
    )
    for name, value, valid, expected in checks:
        if not valid:
            return f"{name} is {value}; it must be {expected}."
    for token in sample.end_tokens:
        if not 0 <= token < vocab_size:
            return f"End token {token} does not exist: the model has {vocab_size}."
    return None


def _invalid(sequence: int, message: str) -> Refused:
    return Refused(sequence, ErrorCode.INVALID_REQUEST, message)
