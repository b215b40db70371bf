"""Checks whether a request can run here at all, before its sequence is queued; no torch.

The service has already checked what a person can get wrong. This is the engine's own guard, so that
no input reaches an assertion or poisons a batch.
"""

import math
from collections.abc import Iterator

from neuron.ipc.messages import Add, Refused, SamplingParams
from protocol.errors import ErrorCode

MAX_LOGPROBS = 20
"""OpenAI's limit on alternatives."""
MAX_TOKEN_LIST = 1024
"""Entries of a bias or token list. They travel in one message and become a table at the first step;
restricting more of the vocabulary than this is a grammar's job."""
MAX_STOPS = 256
MAX_STOP_CHARACTERS = 65_536
"""Of all stop texts together; the automaton that finds them has one state per character."""
MAX_PROMPT_SCORES = 200_000
"""Numbers that prompt_logprobs may ask for. With their tokens' text they leave the node in one
frame, whose limit is 8 MB: about 33 bytes each, and up to 40 where words are long or where each is
of another prompt token."""


def refusal(add: Add, *, context_limit: int, vocab_size: int) -> Refused | None:
    """Returns why *add* can never run, or None if it can.

    The code is ``context_length_exceeded`` when no token of an answer fits after the prompt, else
    ``invalid_request``.
    """
    tokens = len(add.prompt) + len(add.generated)
    if not add.prompt:
        return _invalid(add.id, "The prompt has no tokens. Send at least one.")
    for token in (*add.prompt, *add.generated):
        if not 0 <= token < vocab_size:
            return _invalid(
                add.id,
                f"Token id {token} does not exist: the model has {vocab_size} tokens. "
                "Tokenize with this model's own tokenizer.",
            )
    if len(add.prompt) >= context_limit or tokens > context_limit:
        return Refused(
            add.id,
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"The prompt has {tokens} tokens, but this model's limit is {context_limit}, "
            "including at least one for the answer. Shorten the conversation.",
        )
    fault = (
        _number_fault(add.sample)
        or _amount_fault(add)
        or _token_fault(add.sample, vocab_size)
        or _choice_fault(add.sample, vocab_size)
    )
    return None if fault is None else _invalid(add.id, fault)


def _number_fault(sample: SamplingParams) -> str | None:
    penalties = (sample.presence_penalty, sample.frequency_penalty)
    tops = (sample.logprobs, sample.prompt_logprobs)
    checks = (
        ("max_tokens", sample.max_tokens, sample.max_tokens >= 1, "at least 1"),
        ("min_tokens", sample.min_tokens, sample.min_tokens >= 0, "at least 0"),
        (
            "temperature",
            sample.temperature,
            sample.temperature >= 0 and math.isfinite(sample.temperature),
            "a finite number of at least 0",
        ),
        ("top_k", sample.top_k, 0 <= sample.top_k < 2**31, "at least 0 and below 2**31"),
        ("choice", sample.choice, sample.choice >= 0, "at least 0"),
        ("top_p", sample.top_p, 0 <= sample.top_p <= 1, "between 0 and 1"),
        ("min_p", sample.min_p, 0 <= sample.min_p <= 1, "between 0 and 1"),
        ("presence_penalty", penalties[0], -2 <= penalties[0] <= 2, "between -2 and 2"),
        ("frequency_penalty", penalties[1], -2 <= penalties[1] <= 2, "between -2 and 2"),
        (
            "repetition_penalty",
            sample.repetition_penalty,
            0.001 <= sample.repetition_penalty <= 1000,
            "between 0.001 and 1000, where 1 means none",
        ),
        *(
            (name, value, value is None or 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}")
            for name, value in zip(("logprobs", "prompt_logprobs"), tops, strict=True)
        ),
        ("stop", "an empty text", "" not in sample.stop, "texts with at least one character"),
    )
    for name, value, valid, expected in checks:
        if not valid:
            return f"{name} is {value}; it must be {expected}."
    return None


def _amount_fault(add: Add) -> str | None:
    sample = add.sample
    amounts = (
        ("logit_bias", len(sample.logit_bias), MAX_TOKEN_LIST, "entries"),
        ("allowed_tokens", len(sample.allowed_tokens or ()), MAX_TOKEN_LIST, "entries"),
        ("bad_tokens", len(sample.bad_tokens), MAX_TOKEN_LIST, "entries"),
        ("end_tokens", len(sample.end_tokens), MAX_TOKEN_LIST, "entries"),
        ("stop", len(sample.stop), MAX_STOPS, "texts"),
        ("stop", sum(map(len, sample.stop)), MAX_STOP_CHARACTERS, "characters"),
    )
    for name, amount, most, what in amounts:
        if amount > most:
            return f"{name} has {amount} {what}; the limit is {most}. Send fewer."
    scores = 0 if sample.prompt_logprobs is None else sample.prompt_logprobs + 1
    if scores * len(add.prompt) > MAX_PROMPT_SCORES:
        return (
            f"prompt_logprobs is {sample.prompt_logprobs} for {len(add.prompt)} prompt tokens: "
            f"{scores * len(add.prompt)} numbers, but the limit is {MAX_PROMPT_SCORES}. "
            "Ask for fewer alternatives or send a shorter prompt."
        )
    return None


def _token_fault(sample: SamplingParams, vocab_size: int) -> str | None:
    for name, token in _tokens(sample):
        if not 0 <= token < vocab_size:
            return (
                f"{name} {token} does not exist: the model has {vocab_size} tokens, from 0 to "
                f"{vocab_size - 1}. Use ids of this model's own tokenizer."
            )
    return None


def _tokens(sample: SamplingParams) -> Iterator[tuple[str, int]]:
    yield from (("End token", token) for token in sample.end_tokens)
    yield from (("Token in logit_bias", token) for token, _ in sample.logit_bias)
    yield from (("Token in allowed_tokens", token) for token in sample.allowed_tokens or ())
    yield from (("Token in bad_tokens", token) for token in sample.bad_tokens)


def _choice_fault(sample: SamplingParams, vocab_size: int) -> str | None:
    """Describes what is wrong with the bias, or why no token could be chosen; None if nothing."""
    for token, bias in sample.logit_bias:
        if not -100 <= bias <= 100:
            return f"logit_bias of token {token} is {bias}; it must be between -100 and 100."
    if len({token for token, _ in sample.logit_bias}) < len(sample.logit_bias):
        return "logit_bias lists a token twice; list each token once."
    bad = set(sample.bad_tokens)
    if sample.allowed_tokens is None:
        if len(bad) < vocab_size:
            return None
        return f"bad_tokens lists all {vocab_size} tokens of the model; leave out at least one."
    if not sample.allowed_tokens:
        return "allowed_tokens is empty; list at least one token, or omit it to allow all."
    if bad.issuperset(sample.allowed_tokens):
        return (
            f"bad_tokens lists all {len(set(sample.allowed_tokens))} of allowed_tokens, so no "
            "token can be chosen; leave out at least one."
        )
    return None


def _invalid(sequence: int, message: str) -> Refused:
    return Refused(sequence, ErrorCode.INVALID_REQUEST, message)
