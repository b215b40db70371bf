"""Sampling draws from the right distribution, from the right candidates, and for each row alone."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.sampling.logits_processors import LogitsProcessors
from neuron.engine.sampling.sampler import SampleRow, choose, sample_tokens
from neuron.ipc.messages import SamplingParams
from tests.support.properties import examples

VOCAB = 1000


def row(position: int = 10, generated: int = 0, vocab: int = VOCAB, **sample: Any) -> SampleRow:
    """A row whose prompt is one token again and again, as is its answer."""
    made = SamplingParams(**{"max_tokens": 100} | sample)
    tokens = [1] * position + [2] * generated
    table = LogitsProcessors(vocab, torch.device("cpu")).of(1, made, tokens, position)
    return SampleRow(made, position, generated, table)


def random_logits(
    rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 3
) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def draw(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    tokens: list[int] = sample_tokens(logits.clone(), rows).tolist()
    return tokens


def reference_support(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """The candidates, as slowly and plainly as can be: top-k, then top-p, then min-p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    weights = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    kept: list[int] = []
    mass, total = 0.0, sum(weights)
    for token, weight in zip(order, weights, strict=True):
        if kept and mass / total >= top_p:
            break
        kept.append(token)
        mass += weight
    return {order[0]} | {t for t, w in zip(kept, weights, strict=False) if w >= min_p}


def test_greedy_is_the_largest_logit() -> None:
    logits = random_logits(5)
    assert draw(logits, [row()] * 5) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9999999}, {"top_k": 12}])
def test_draws_follow_the_softmax(temperature: float, cut: dict[str, Any]) -> None:
    """Chi-square over 12 tokens and 20,000 positions; 11 degrees of freedom."""
    logits = random_logits(1, 12, scale=1.0)
    count = 20_000
    rows = [row(position, temperature=temperature, seed=3, **cut) for position in range(count)]
    drawn = torch.bincount(torch.tensor(draw(logits.expand(count, -1), rows)), minlength=12)
    expected = (logits[0] / temperature).softmax(-1) * count
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    assert chi_square < 31.3, "p < 0.001"


def test_the_chi_square_notices_a_wrong_temperature() -> None:
    logits = random_logits(1, 12, scale=1.0)
    rows = [row(position, temperature=1.1) for position in range(20_000)]
    drawn = torch.bincount(torch.tensor(draw(logits.expand(20_000, -1), rows)), minlength=12)
    expected = logits[0].softmax(-1) * 20_000
    assert float(((drawn - expected) ** 2 / expected).sum()) > 31.3


@examples(60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    st.sampled_from([0, 1, 5, 40, 256, 300, 900, 5000]),
    st.sampled_from([0.0, 0.2, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.9, 1.0]),
)
def test_candidates_equal_the_plain_reference(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(1, 700, seed=seed, scale=1.5)
    support = reference_support(logits[0].tolist(), temperature or 1e-9, top_k, top_p, min_p)
    rows = [
        row(position, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        for position in range(300)
    ]
    drawn = set(draw(logits.expand(300, -1), rows))
    assert drawn <= support
    if len(support) <= 3 and temperature:
        assert drawn == support, "300 draws find each of so few likely tokens"


def mixed_rows(count: int, seed: int = 1) -> list[SampleRow]:
    rng = random.Random(seed)
    return [
        row(
            rng.randrange(1, 500),
            rng.randrange(3),
            temperature=rng.choice([0.0, 0.6, 1.0, 1.5]),
            top_k=rng.choice([0, 0, 20, 600]),
            top_p=rng.choice([1.0, 0.8, 0.999]),
            min_p=rng.choice([0.0, 0.1]),
            seed=rng.randrange(2**63),
            choice=rng.randrange(3),
            min_tokens=2,
            end_tokens=(3, 4),
            presence_penalty=rng.choice([0.0, 0.0, 1.5]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            logit_bias=rng.choice([(), ((5, 4.0), (9, -100.0))]),
            allowed_tokens=rng.choice([None, None, tuple(range(100, 300))]),
            bad_tokens=rng.choice([(), (100, 101)]),
            logprobs=rng.choice([None, 0, 3, 20]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("scale", [0.3, 4.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_the_batch(scale: float, threads: int) -> None:
    """Tokens and log-probabilities, to the bit, in batches of 1 to 9 of all kinds of rows."""
    logits, rows = random_logits(40, 33_000, scale=scale), mixed_rows(40)
    alone = [choose(logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(40)]
    torch.set_num_threads(threads)
    try:
        rng = random.Random(2)
        for size in range(1, 10):
            order = rng.sample(range(40), size)
            batch = choose(logits[order], [rows[i] for i in order])
            assert batch == [alone[i] for i in order]
        assert choose(logits.clone(), rows) == alone
    finally:
        torch.set_num_threads(1)


def test_a_token_has_its_log_probability_whatever_changed_its_chance() -> None:
    logits = random_logits(1)
    changes: list[dict[str, Any]] = [
        {"temperature": 0.3, "top_k": 1},
        {"logit_bias": ((17, 90.0),)},
        {"repetition_penalty": 5.0},
        {"allowed_tokens": (17,)},
    ]
    wanted = logits[0].double().log_softmax(-1)
    for change in changes:
        (chosen,) = choose(logits.clone(), [row(logprobs=1, **change)])
        assert chosen.logprobs is not None
        assert chosen.logprobs.token == pytest.approx(float(wanted[chosen.token]), abs=2e-6)
        assert chosen.logprobs.top[0][0] == int(wanted.argmax())


def test_rows_that_do_not_ask_have_no_log_probabilities() -> None:
    asked = choose(random_logits(3), [row(), row(logprobs=0), row()])
    assert [one.logprobs is not None for one in asked] == [False, True, False]


def test_a_poisoned_row_has_none_and_others_do() -> None:
    logits = random_logits(3)
    logits[1, 5] = math.nan
    chosen = choose(logits, [row(logprobs=2)] * 3)
    assert [one.logprobs is not None for one in chosen] == [True, False, True]
    assert chosen[1].token == -1


def test_every_part_of_the_key_matters() -> None:
    logits = random_logits(1, scale=0.1)
    base: dict[str, Any] = {"temperature": 1.0, "seed": 5, "choice": 0}
    variants = [row(10, **base)]
    variants += [row(10, **base | {"seed": seed}) for seed in range(6, 56)]
    variants += [row(10, **base | {"choice": choice}) for choice in range(1, 5)]
    variants += [row(position, **base) for position in range(11, 16)]
    drawn = draw(logits.expand(len(variants), -1), variants)
    assert len(set(drawn)) > len(variants) * 0.9


def test_prompt_and_answer_tokens_count_alike() -> None:
    """A resumed answer is longer or its prompt is: the position is their sum."""
    logits = random_logits(1, scale=0.1)
    one, other = row(30, 5, temperature=1.0), row(20, 15, temperature=1.0)
    assert draw(logits, [one]) == draw(logits, [other])


def test_end_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(3, 50)
    logits[:, 7] = 9.0
    logits[:, 8] = 8.0
    ends: dict[str, Any] = {"min_tokens": 2, "end_tokens": (7,)}
    rows = [row(generated=count, vocab=50, **ends) for count in range(3)]
    assert draw(logits, rows) == [8, 8, 7]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_poisoned_rows_are_marked_and_others_are_not(poison: float, temperature: float) -> None:
    logits = random_logits(3)
    healthy = draw(logits, [row(temperature=temperature)] * 3)
    logits[1, 400] = poison
    tokens = draw(logits, [row(temperature=temperature)] * 3)
    assert tokens == [healthy[0], -1, healthy[2]]


def test_extreme_temperatures_stay_within_the_candidates() -> None:
    logits = random_logits(2)
    cold, hot = draw(logits, [row(temperature=2e-5), row(temperature=1e30, top_k=5)])
    assert cold == int(logits[0].argmax())
    assert hot in logits[1].topk(5).indices


def test_a_nucleus_beyond_the_fast_path_is_drawn_whole() -> None:
    """Flat logits: top_p 0.9 of 1000 tokens is 900 of them, not the first 256."""
    logits = random_logits(1, scale=1e-3)
    support = reference_support(logits[0].tolist(), 1.0, 0, 0.9, 0.0)
    rows = [row(position, temperature=1.0, top_p=0.9) for position in range(4000)]
    drawn = set(draw(logits.expand(4000, -1), rows))
    assert drawn <= support
    assert len(drawn) > 0.95 * len(support)
