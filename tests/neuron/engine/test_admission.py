"""What the engine refuses before it queues anything."""

import math
from typing import Any

import pytest

from neuron.engine.admission import refusal
from neuron.engine.messages import Add, Sample
from protocol.errors import ErrorCode


def check(add: Add) -> tuple[str, str] | None:
    refused = refusal(add, context_limit=100, vocab_size=50)
    return None if refused is None else (refused.code, refused.message)


def add(prompt: int = 5, *, generated: int = 0, **sample: Any) -> Add:
    made = Sample(**{"max_tokens": 10} | sample)
    return Add(1, [1] * prompt, made, [2] * generated)


@pytest.mark.parametrize(
    "good",
    [
        add(),
        add(99),
        add(90, generated=10),
        add(max_tokens=10**9),
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
        (Add(1, [1, 50], Sample(max_tokens=1)), "Token id 50"),
        (Add(1, [1, -1], Sample(max_tokens=1)), "Token id -1"),
        (Add(1, [1], Sample(max_tokens=5), [99]), "Token id 99"),
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
    ],
)
def test_what_makes_no_sense_is_refused_by_name(bad: Add, word: str) -> None:
    code, message = check(bad) or ("", "")
    assert code == ErrorCode.INVALID_REQUEST
    assert word in message
