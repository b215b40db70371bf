"""Bias, masks and penalties change the logits as documented, in the documented order."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from neuron.engine.sampling.logits_processors import LogitsProcessors
from neuron.engine.sampling.penalties import Penalties
from neuron.ipc.messages import SamplingParams
from tests.support.properties import examples

VOCAB = 40
CPU = torch.device("cpu")


def adjusted(
    logits: torch.Tensor, prompt: list[int], answer: list[int], **sample: Any
) -> list[float]:
    made = SamplingParams(**{"max_tokens": 100} | sample)
    table = LogitsProcessors(VOCAB, CPU).of(1, made, prompt + answer, len(prompt))
    logits = logits.clone()
    if table is not None:
        table.apply(logits, len(answer))
    values: list[float] = logits.tolist()
    return values


def plain(
    logits: torch.Tensor, prompt: list[int], answer: list[int], sample: SamplingParams
) -> list[float]:
    """Token by token, as the documentation says it."""
    values = []
    for token, value in enumerate(logits.tolist()):
        if sample.allowed_tokens is not None and token not in sample.allowed_tokens:
            value = -torch.inf
        if token in sample.bad_tokens:
            value = -torch.inf
        if len(answer) < sample.min_tokens and token in sample.end_tokens:
            value = -torch.inf
        value += dict(sample.logit_bias).get(token, 0.0)
        if token in prompt or token in answer:
            penalty = sample.repetition_penalty
            value = value / penalty if value > 0 else value * penalty
        count = answer.count(token)
        value -= sample.frequency_penalty * count
        value -= sample.presence_penalty * (count > 0)
        values.append(value)
    return values


TOKENS = st.lists(st.integers(0, 19), max_size=12)


@examples(200)
@given(
    st.integers(0, 10**6),
    TOKENS.filter(bool),
    TOKENS,
    st.fixed_dictionaries(
        {},
        optional={
            "presence_penalty": st.sampled_from([-2.0, 0.5, 2.0]),
            "frequency_penalty": st.sampled_from([-1.0, 0.25]),
            "repetition_penalty": st.sampled_from([0.5, 1.3]),
            "logit_bias": st.just(((3, 5.0), (1, -100.0), (30, 2.0))),
            "allowed_tokens": st.just((1, 2, 3, 30)),
            "bad_tokens": st.just((2, 31)),
            "end_tokens": st.just((3, 4)),
            "min_tokens": st.sampled_from([3, 6]),
        },
    ),
)
def test_everything_together_is_as_documented(
    seed: int, prompt: list[int], answer: list[int], sample: dict[str, Any]
) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    wanted = plain(logits, prompt, answer, SamplingParams(max_tokens=9, **sample))
    assert adjusted(logits, prompt, answer, **sample) == pytest.approx(wanted, abs=1e-4)


def test_repetition_is_transformers() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 3
    prompt, answer = [1, 2, 3, 3], [3, 7]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + answer]), logits[None])
    ours = adjusted(logits, prompt, answer, repetition_penalty=1.7)
    assert ours == pytest.approx(theirs[0].tolist(), rel=1e-6)


def test_presence_and_frequency_ignore_the_prompt() -> None:
    logits = torch.ones(VOCAB)
    values = adjusted(logits, [5, 5, 6], [6, 7, 7, 7], presence_penalty=1.0, frequency_penalty=0.1)
    assert values[5:8] == pytest.approx([1.0, -0.1, -0.3])


def test_a_table_that_grew_equals_one_made_anew() -> None:
    """More tokens than the table begins with, in steps of any size."""
    rng = random.Random(5)
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(5))
    sample = SamplingParams(99, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1)
    tokens = rng.choices(range(500), k=30)
    grown = LogitsProcessors(2000, CPU)
    for _ in range(60):
        table = grown.of(7, sample, tokens, 30)
        fresh = LogitsProcessors(2000, CPU).of(7, sample, tokens, 30)
        assert table is not None
        assert fresh is not None
        ours, wanted = logits.clone(), logits.clone()
        table.apply(ours, len(tokens) - 30)
        fresh.apply(wanted, len(tokens) - 30)
        assert ours.equal(wanted)
        tokens += rng.choices(range(500), k=rng.randrange(5))


def test_a_step_looks_at_new_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    monkeypatch.setattr(Penalties, "add", lambda _, token: added.append(token))
    tables, sample = LogitsProcessors(VOCAB, CPU), SamplingParams(99, frequency_penalty=0.3)
    tokens = [1, 2, 3]
    for token in range(10, 20):
        tables.of(1, sample, tokens, 3)
        tokens.append(token)
    assert added == list(range(10, 19))


def test_a_forgotten_sequence_leaves_nothing_to_the_next_of_its_id() -> None:
    tables, sample = LogitsProcessors(VOCAB, CPU), SamplingParams(99, frequency_penalty=1.0)
    tables.of(1, sample, [1, 2, 2], 1)
    tables.forget(1)
    tables.forget(1)
    table = tables.of(1, sample, [1, 5], 1)
    logits = torch.zeros(VOCAB)
    assert table is not None
    table.apply(logits, 1)
    assert logits.nonzero().tolist() == [[5]]


def test_rows_that_ask_for_nothing_have_no_table() -> None:
    for nothing in ({}, {"min_tokens": 5}, {"end_tokens": (1,)}, {"repetition_penalty": 1.0}):
        made = SamplingParams(**{"max_tokens": 9} | nothing)
        assert LogitsProcessors(VOCAB, CPU).of(1, made, [1], 1) is None


@pytest.mark.parametrize(
    ("sample", "left"),
    [
        ({"allowed_tokens": (3, 4), "end_tokens": (3,), "min_tokens": 5}, [4]),
        ({"allowed_tokens": (3, 4), "end_tokens": (3, 4), "min_tokens": 5}, [3, 4]),
        ({"allowed_tokens": (3, 4), "bad_tokens": (4,), "end_tokens": (3,), "min_tokens": 5}, [3]),
        ({"bad_tokens": tuple(range(39)), "end_tokens": (39,), "min_tokens": 5}, [39]),
        ({"bad_tokens": tuple(range(38)), "end_tokens": (39,), "min_tokens": 5}, [38]),
        ({"end_tokens": tuple(range(40)), "min_tokens": 5}, list(range(40))),
    ],
)
def test_min_tokens_yields_before_nothing_is_left(sample: dict[str, Any], left: list[int]) -> None:
    values = adjusted(torch.zeros(VOCAB), [1], [], **sample)
    assert [token for token, value in enumerate(values) if value > -torch.inf] == left


@pytest.mark.parametrize("penalty", [0.001, 1000.0])
def test_extreme_logits_stay_finite(penalty: float) -> None:
    logits = torch.full((VOCAB,), 3e38)
    logits[::2] = -3e38
    values = adjusted(logits, list(range(20)), [1, 2], repetition_penalty=penalty)
    assert torch.tensor(values).isfinite().all()
