"""What the engine refuses before it queues anything."""

import math
from typing import Any

import pytest

from neuron.engine.request_checks import MAX_PROMPT_SCORES, refusal
from neuron.ipc.messages import Add, SamplingParams
from protocol import codec
from protocol.errors import ErrorCode
from protocol.frames import Delta, Text
from protocol.generate import TokenLogprob, TokenLogprobs


def check(add: Add) -> tuple[str, str] | None:
    refused = refusal(add, context_limit=100, vocab_size=50)
    return None if refused is None else (refused.code, refused.message)


def add(prompt: int = 5, *, generated: int = 0, **sample: Any) -> Add:
    made = SamplingParams(**{"max_tokens": 10} | sample)
    return Add(1, [1] * prompt, made, [2] * generated)


@pytest.mark.parametrize(
    "good",
    [
        add(),
        add(99),
        add(90, generated=10),
        add(max_tokens=10**9),
        add(presence_penalty=-2.0, frequency_penalty=2.0, repetition_penalty=0.001),
        add(logit_bias=((0, -100.0), (49, 100.0)), bad_tokens=(1,), allowed_tokens=(1, 2)),
        add(logprobs=0, prompt_logprobs=20, min_tokens=99, end_tokens=(1,)),
        add(allowed_tokens=(1,), end_tokens=(1,), min_tokens=5),
        add(bad_tokens=tuple(range(49))),
        add(logit_bias=((1, 0.5),), allowed_tokens=(1,) * 1024, stop=("x",) * 256),
        add(seed=-5, temperature=2.0, top_k=10**6, top_p=0.0, min_p=1.0, stop=("x",)),
    ],
)
def test_good_requests_pass(good: Add) -> None:
    assert check(good) is None


@pytest.mark.parametrize("long", [add(100), add(90, generated=11), add(500)])
def test_what_exceeds_the_context_is_refused_with_the_numbers(long: Add) -> None:
    code, message = check(long) or ("", "")
    assert code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "100" in message


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (add(0), "no tokens"),
        (Add(1, [1, 50], SamplingParams(max_tokens=1)), "Token id 50"),
        (Add(1, [1, -1], SamplingParams(max_tokens=1)), "Token id -1"),
        (Add(1, [1], SamplingParams(max_tokens=5), [99]), "Token id 99"),
        (add(max_tokens=0), "max_tokens"),
        (add(temperature=-0.1), "temperature"),
        (add(temperature=math.nan), "temperature"),
        (add(temperature=math.inf), "temperature"),
        (add(top_k=-1), "top_k"),
        (add(top_k=2**70), "top_k"),
        (add(top_p=1.1), "top_p"),
        (add(top_p=math.nan), "top_p"),
        (add(min_p=-1), "min_p"),
        (add(choice=-1), "choice"),
        (add(stop=("a", "")), "stop"),
        (add(end_tokens=(50,)), "End token 50"),
        (add(end_tokens=(-1,)), "End token -1"),
        (add(min_tokens=-1), "min_tokens"),
        (add(presence_penalty=2.1), "presence_penalty is 2.1"),
        (add(presence_penalty=math.nan), "presence_penalty"),
        (add(frequency_penalty=-2.1), "frequency_penalty is -2.1"),
        (add(frequency_penalty=math.inf), "frequency_penalty"),
        (add(repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (add(repetition_penalty=-1.0), "repetition_penalty"),
        (add(repetition_penalty=math.nan), "repetition_penalty"),
        (add(repetition_penalty=1e9), "repetition_penalty"),
        (add(logit_bias=((50, 1.0),)), "logit_bias 50"),
        (add(logit_bias=((-1, 1.0),)), "logit_bias -1"),
        (add(logit_bias=((3, 100.5),)), "token 3 is 100.5"),
        (add(logit_bias=((3, math.nan),)), "token 3 is nan"),
        (add(logit_bias=((3, 1.0), (3, 2.0))), "twice"),
        (
            add(logit_bias=tuple((i % 50, 1.0) for i in range(1025))),
            "1025 entries; the limit is 1024",
        ),
        (add(allowed_tokens=(50,)), "allowed_tokens 50"),
        (add(allowed_tokens=(1,) * 1025), "the limit is 1024"),
        (add(allowed_tokens=()), "allowed_tokens is empty"),
        (add(allowed_tokens=(1, 2, 2), bad_tokens=(2, 1, 3)), "all 2 of allowed_tokens"),
        (add(bad_tokens=(50,)), "bad_tokens 50"),
        (add(bad_tokens=(-1,)), "bad_tokens -1"),
        (add(bad_tokens=(1,) * 1025), "the limit is 1024"),
        (add(bad_tokens=tuple(range(50))), "all 50 tokens"),
        (add(end_tokens=(1,) * 1025), "the limit is 1024"),
        (add(logprobs=21), "logprobs is 21"),
        (add(logprobs=-1), "logprobs is -1"),
        (add(prompt_logprobs=21), "prompt_logprobs is 21"),
        (add(stop=("x",) * 257), "257 texts"),
        (add(stop=("x" * 65_537,)), "65537 characters"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(bad: Add, word: str) -> None:
    code, message = check(bad) or ("", "")
    assert code == ErrorCode.INVALID_REQUEST
    assert word in message


def test_prompt_scores_are_bounded_by_their_number() -> None:
    def fault(tokens: int, top: int) -> str:
        made = Add(1, [1] * tokens, SamplingParams(max_tokens=1, prompt_logprobs=top))
        refused = refusal(made, context_limit=10**6, vocab_size=50)
        return "" if refused is None else refused.message

    assert fault(9_523, 20) == ""
    assert "9524 prompt tokens: 200004 numbers" in fault(9_524, 20)
    assert fault(100_000, 1) == ""


@pytest.mark.parametrize("top", [0, 1, 20])
def test_as_many_prompt_scores_as_are_allowed_fit_into_one_frame(top: int) -> None:
    token, value = b" word", -12.345678329467773  # as long as such numbers are
    score = TokenLogprobs(token, value, (TokenLogprob(token, value),) * top)
    count = MAX_PROMPT_SCORES // (top + 1)
    text = Text(token.decode() * count, (score,) * count)
    frame = Delta(attempt=1, instance="i", index=0, tokens=(1,), parts=(text,))
    assert len(codec.encode(frame)) < (8 << 20) - 4096
