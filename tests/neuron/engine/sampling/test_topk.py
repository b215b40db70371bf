"""The best tokens of a row equal a stable sort's, ties and odd sizes included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.sampling.topk import CHUNK, TopK
from tests.support.properties import examples


def sorted_top(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return values[:, :count], ids[:, :count]


@examples(150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 1000, 6400, 9001]),
    st.sampled_from([1, 2, 20, 64, 512]),
    st.sampled_from(["distinct", "tied", "masked", "equal", "zeros"]),
)
def test_top_equals_a_stable_sort(seed: int, vocab: int, count: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, vocab, generator=generator) * 3
    match kind:
        case "tied":
            logits = logits.round()
        case "masked":
            logits[torch.rand(4, vocab, generator=generator) < 0.97] = -torch.inf
        case "equal":
            logits = torch.full((4, vocab), 1.5)
        case "zeros":
            logits = torch.where(logits > 0, 0.0, -0.0)
    topk = TopK(logits)
    values, ids = topk.top(count)
    wanted_values, wanted = sorted_top(logits, count)
    assert ids.tolist() == wanted.tolist()
    assert values.tolist() == wanted_values.tolist()
    assert topk.argmax().tolist() == wanted[:, 0].tolist()
    assert topk.best().tolist() == wanted_values[:, :1].tolist()


def test_some_rows_are_those_rows() -> None:
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([4, 0, 4])
    values, ids = TopK(logits).top(30, some)
    assert ids.tolist() == sorted_top(logits[some], 30)[1].tolist()
    assert values.tolist() == sorted_top(logits[some], 30)[0].tolist()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_broken_row_stays_within_the_vocabulary(poison: float) -> None:
    logits = torch.zeros(2, 1001)
    logits[0, 1000] = poison
    assert TopK(logits).argmax().max() <= 1000
