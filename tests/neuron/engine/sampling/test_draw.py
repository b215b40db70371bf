"""Every way of drawing gives what the plain definition gives, without a single difference."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron.engine.sampling import cpu_chunks, draw, full_vocab_draw
from neuron.engine.sampling.draw import Draw, DrawParams
from neuron.engine.sampling.full_vocab_draw import FullVocabDraw
from neuron.engine.sampling.gumbel import gumbel, row_key
from neuron.engine.sampling.nucleus import LOG2_E, Weights
from neuron.engine.sampling.topk import TopK
from tests.neuron.engine.sampling.plain_sampler import plain_draw
from tests.support.properties import examples

VOCAB = 3001


def noise_logits(rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 1) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits: torch.Tensor, params: list[DrawParams]) -> list[int]:
    tokens: list[int] = (
        Draw(logits, TopK(logits), list(range(len(logits))), params).tokens().tolist()
    )
    return tokens


def differences(logits: torch.Tensor, params: list[DrawParams]) -> int:
    tokens = drawn(logits, params)
    wanted = [plain_draw(row, param) for row, param in zip(logits, params, strict=True)]
    return sum(a != b for a, b in zip(tokens, wanted, strict=True))


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_unrestricted_draws_are_those_of_the_definition(scale: float, temperature: float) -> None:
    params = [DrawParams(row_key(1, 0, position), temperature) for position in range(300)]
    assert differences(noise_logits(300, scale=scale), params) == 0


def test_a_full_vocabulary_is_drawn_as_defined() -> None:
    logits = noise_logits(24, 151_936, scale=1.5)
    params = [DrawParams(row_key(2, 0, at), 1.0, top_p=(1.0, 0.9, 0.4)[at % 3]) for at in range(24)]
    assert differences(logits, params) == 0


@examples(150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([70, 256, 700, 3001]),
    st.sampled_from([0.05, 1.0, 4.0]),
    st.booleans(),
    st.sampled_from([2e-5, 0.5, 1.0, 5.0]),
    st.sampled_from([0, 0, 1, 5, 64, 65, 300, 512, 513, 2000, 10**6]),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0]),
)
def test_every_mix_of_cuts_is_drawn_as_defined(
    seed: int,
    vocab: int,
    scale: float,
    tied: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    """*tied* rounds as bfloat16 models do: then every cut goes through equal logits."""
    logits = noise_logits(8, vocab, seed=seed, scale=scale)
    if tied:
        logits = logits.bfloat16().float()
    params = [
        DrawParams(row_key(seed, 0, position), temperature, top_k, top_p, min_p)
        for position in range(8)
    ]
    assert differences(logits, params) == 0


def test_tokens_that_may_not_be_chosen_are_not() -> None:
    logits = torch.full((40, 2000), -torch.inf)
    logits[:, [3, 700, 1999]] = torch.tensor([1.0, 0.5, 0.0])
    for cuts in ({}, {"top_p": 0.9}, {"top_k": 900}, {"top_k": 900, "top_p": 0.99}, {"min_p": 0.1}):
        params = [DrawParams(row_key(0, 0, at), 1.0, **cuts) for at in range(40)]
        tokens = drawn(logits, params)
        assert set(tokens) <= {3, 700, 1999}
        assert tokens == [plain_draw(row, r) for row, r in zip(logits, params, strict=True)]


def test_tokens_that_weigh_nothing_are_not_overlooked() -> None:
    """26 nats below the best a token has no unit left, but with luck and a low floor a chance."""
    logits = noise_logits(1, 40_000, scale=12.0)
    scale = torch.tensor([[LOG2_E]])
    best = float(logits.max())
    weights = Weights(logits, logits.amax(-1, keepdim=True), scale)
    assert int((weights.units == 0).sum()) > 10_000
    scores = logits[0].double() + gumbel(torch.tensor([[77]]), torch.arange(40_000)[None])[0]
    weightless = scores.masked_fill(weights.units[0] > 0, -torch.inf).sort(descending=True)
    for rank in (0, 10, 1000):
        floor = float(weightless.values[rank])
        runner = FullVocabDraw(40_000, logits.device)
        passed = runner.contenders(weights.units[0], weights.bits, 77, best, floor)
        wanted = set(weightless.indices[: rank + 1].tolist())
        assert wanted <= set(passed.tolist())


@pytest.mark.parametrize(
    "cuts",
    [
        {"top_p": 0.5},
        {"top_k": 1500},
        {"top_k": 2000, "top_p": 0.6},
        {"min_p": 0.5},
        {"top_p": 0.97, "min_p": 0.5},
    ],
)
def test_cuts_through_thousands_of_equal_logits(cuts: dict[str, Any]) -> None:
    """Only the ids decide who of the equal ones is inside; min-p leaves 2,000 of 3,001 tokens."""
    logits = torch.zeros(VOCAB)
    logits[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:1001]] = -1.0
    params = [DrawParams(row_key(4, 0, at), 1.0, **cuts) for at in range(150)]
    assert differences(logits.expand(150, -1).contiguous(), params) == 0


@pytest.mark.parametrize("top_k", [64, 512])
def test_a_top_k_as_wide_as_the_look_is_complete(top_k: int) -> None:
    """Flat logits: the last of the top-k is inside the nucleus, so nothing seems cut away."""
    params = [DrawParams(row_key(1, 0, at), 1.0, top_k, 0.9999) for at in range(40)]
    assert differences(noise_logits(40, scale=1e-3), params) == 0


def test_nobody_who_reaches_the_floor_is_overlooked() -> None:
    """The race passes all tokens at or above a floor, wherever it lies."""
    logits = noise_logits(1, 40_000, scale=2.0)
    param = DrawParams(0, 0.8)
    maker = Draw(logits, TopK(logits), [0], [param])
    maker._weigh([0])
    weights, _ = maker._rows[0]
    best = float(logits.max())
    rng = random.Random(3)
    for _ in range(60):
        key = row_key(rng.randrange(2**63), 0, 1)
        scores = (
            logits[0].double() / 0.8 + gumbel(torch.tensor([[key]]), torch.arange(40_000)[None])[0]
        )
        ordered = scores.sort(descending=True).values
        floor = float(ordered[rng.randrange(200)])
        passed = FullVocabDraw(40_000, logits.device).contenders(
            weights.units[0], weights.bits, key, best / 0.8, floor
        )
        assert set((scores >= floor).nonzero()[:, 0].tolist()) <= set(passed.tolist())
        assert len(passed) < 5000, "and few others"


def test_a_gpus_race_passes_the_same_tokens() -> None:
    """The code for a GPU, on the CPU."""
    weights = torch.rand(70_001, generator=torch.Generator().manual_seed(8)).mul_(2.0**36).floor_()
    runner = FullVocabDraw(70_001, weights.device)
    for key in (0, 5, -(2**63), 2**63 - 1):
        for scale in (2.0**-29, 2.0**-25, 2.0**-20):
            passed = runner._on_gpu(weights, key, scale, 1.0)
            assert 0 < len(passed) < 70_001
            assert passed.equal(runner._on_cpu(weights, key, scale, 1.0))


def test_draws_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = noise_logits(6, 70_000)
    params = [DrawParams(at, 1.0, top_p=(1.0, 0.9, 0.3)[at % 3]) for at in range(6)]
    expected = drawn(logits, params)
    monkeypatch.setattr(cpu_chunks, "CHUNK", 999)
    assert drawn(logits, params) == expected
    monkeypatch.setattr(cpu_chunks, "MANY_THREADS", 1)
    assert drawn(logits, params) == expected


def test_the_way_through_the_whole_row_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would prove little if the short ways served them."""
    taken = []
    original = FullVocabDraw.contenders

    def watched(self: FullVocabDraw, *args: Any) -> torch.Tensor:
        taken.append(1)
        return original(self, *args)

    monkeypatch.setattr(full_vocab_draw.FullVocabDraw, "contenders", watched)
    assert draw.WIDTHS == (64, 512)
    drawn(noise_logits(9), [DrawParams(at, 1.0, top_p=0.9) for at in range(9)])
    assert len(taken) == 9
    drawn(noise_logits(9, scale=9), [DrawParams(at, 1.0, top_p=0.9) for at in range(9)])
    assert len(taken) == 9


def test_draws_from_a_nucleus_follow_the_softmax() -> None:
    """Chi-square over a nucleus of 900 of 1,000 flat tokens, in 20 bins of ids."""
    logits = noise_logits(1, 1000, scale=1e-3)
    order = logits[0].argsort(descending=True)[:900]
    params = [DrawParams(row_key(5, 0, at), 1.0, top_p=0.9) for at in range(3000)]
    tokens = torch.tensor(drawn(logits.expand(3000, -1), params))
    assert set(tokens.tolist()) <= set(order.tolist())
    seen = torch.bincount(tokens // 50, minlength=20).double()
    expected = torch.bincount(order // 50, minlength=20).double() / 900 * 3000
    assert float(((seen - expected) ** 2 / expected).sum()) < 43.8, "p < 0.001 at 19 degrees"
    assert math.isclose(float(expected.sum()), 3000)
