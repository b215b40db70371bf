"""Decodes a completions body into neutral requests, one for each prompt and choice.

Pure; every refusal names the field and says what to do.
"""

from typing import cast

import msgspec

from cortex.api.dialects.base import Call
from cortex.api.dialects.completions.types import CompletionRequest
from cortex.api.dialects.request_fields import (
    StreamOptions,
    checked_model,
    invalid,
    priority_of,
    read,
    sampling_of,
)
from cortex.dispatch.answer import Choice
from protocol.generate import GenerateRequest
from protocol.names import MAX_SIBLINGS

_DECODER = msgspec.json.Decoder(CompletionRequest)
USUAL_TOKENS = 16
"""Default of ``max_tokens``, as OpenAI documents it."""

Prompt = str | tuple[int, ...]


class Echo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the renderer needs to know of the request."""

    prompts: int = 1
    logprobs: bool = False
    running_usage: bool = False


def decode_completion(body: bytes) -> Call:
    """Decodes a body; raises ``FleetError(INVALID_REQUEST)`` with the path of the field at
    fault."""
    asked = read(_DECODER, body)
    count = asked.n or 1
    _refuse_unserved(asked, count)
    prompts = _prompts(asked.prompt)
    if len(prompts) * count > MAX_SIBLINGS:
        raise invalid(
            f"prompt: {len(prompts)} prompts with n = {count} make {len(prompts) * count} "
            f"answers; at most {MAX_SIBLINGS} are allowed in one request. Send several requests.",
            "prompt",
        )
    max_tokens = USUAL_TOKENS if asked.max_tokens is None else asked.max_tokens
    sampling = sampling_of(asked, max_tokens=max_tokens, logprobs=asked.logprobs)
    model = checked_model(asked.model)
    requests = [
        GenerateRequest(
            model,
            sampling=sampling,
            prompt=prompt,
            add_special=asked.add_special_tokens is not False,
            echo=bool(asked.echo),
        )
        for prompt in prompts
    ]
    options = asked.stream_options or StreamOptions()
    echo = Echo(len(prompts), asked.logprobs is not None, bool(options.continuous_usage_stats))
    return Call(
        choices=tuple(Choice(request, n) for request in requests for n in range(count)),
        model=asked.model,
        stream=bool(asked.stream),
        seed=asked.seed,
        priority=priority_of(asked.service_tier),
        include_usage=bool(options.include_usage),
        echo=msgspec.json.encode(echo),
    )


def _refuse_unserved(asked: CompletionRequest, count: int) -> None:
    if asked.suffix:
        raise invalid("suffix: fill-in-the-middle is not supported. Leave the field out.", "suffix")
    if asked.best_of is not None and asked.best_of != count:
        raise invalid(
            f"best_of: generating {asked.best_of} answers and returning {count} is not supported. "
            "Leave the field out, and choose among n.",
            "best_of",
        )
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens: 0 requires echo = true; otherwise send 1 or more.", "max_tokens")


def _prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    if set(map(type, prompt)) <= {int}:  # there may be a million of them
        return [cast(tuple[int, ...], tuple(prompt))]
    prompts: list[Prompt] = []
    for number, one in enumerate(prompt):
        if isinstance(one, int):
            path = f"prompt[{number}]"
            raise invalid(f"{path}: the list mixes texts and tokens; send one kind.", path)
        prompts.append(one if isinstance(one, str) else tuple(one))
    return prompts
