"""Sampling draws from the right distribution, from the right candidates, and for each row alone."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron.engine.messages import Sample
from neuron.engine.sampler import SampleRow, sample_tokens

VOCAB = 1000


def row(position: int = 10, generated: int = 0, **sample: Any) -> SampleRow:
    return SampleRow(Sample(**{"max_tokens": 100} | sample), position, generated)


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


@settings(max_examples=60, deadline=None)
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


def mixed_rows(count: int) -> list[SampleRow]:
    rng = random.Random(1)
    return [
        row(
            rng.randrange(500),
            temperature=rng.choice([0.0, 0.6, 1.0, 1.5]),
            top_k=rng.choice([0, 0, 20, 600]),
            top_p=rng.choice([1.0, 0.8, 0.999]),
            min_p=rng.choice([0.0, 0.1]),
            seed=rng.randrange(2**63),
            choice=rng.randrange(3),
        )
        for _ in range(count)
    ]


def test_a_row_does_not_depend_on_the_batch() -> None:
    logits, rows = random_logits(40, scale=1.0), mixed_rows(40)
    together = draw(logits, rows)
    alone = [draw(logits[i : i + 1], rows[i : i + 1])[0] for i in range(40)]
    order = random.Random(2).sample(range(40), 40)
    shuffled = draw(logits[order], [rows[i] for i in order])
    assert together == alone
    assert shuffled == [together[i] for i in order]


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
    rows = [row(generated=0, **ends), row(generated=1, **ends), row(generated=2, **ends)]
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
