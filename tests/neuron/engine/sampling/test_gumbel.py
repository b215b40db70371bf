"""The noise is the documented function of its inputs, to the bit."""

import math

import pytest
import torch

from neuron.engine.sampling.gumbel import (
    GAMMA,
    Hasher,
    gumbel,
    mix,
    row_key,
    unfinished_words,
    words,
)

MASK = (1 << 64) - 1


def test_mix_is_splitmix64() -> None:
    """The first outputs for state 1234567, as published with the reference implementation."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(mix(state))
        state = (state + GAMMA) & MASK
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5])
def test_tensor_words_equal_integer_arithmetic(seed: int) -> None:
    key = row_key(seed, 2, 77)
    assert -(2**63) <= key < 2**63
    ids = torch.tensor([[0, 1, 2, 151_935]])
    expected = [mix((key + token * GAMMA) & MASK) for token in ids[0].tolist()]
    assert [word & MASK for word in words(torch.tensor([[key]]), ids)[0].tolist()] == expected


def test_known_values_never_change() -> None:
    """Streams move between versions: another noise here would change their answers."""
    noise = gumbel(torch.tensor([[row_key(42, 0, 100)]]), torch.arange(4)[None])[0].tolist()
    expected = []
    for token in range(4):
        word = mix((row_key(42, 0, 100) + token * GAMMA) & MASK) >> 12
        expected.append(-math.log(-math.log((word + 0.5) * 2.0**-52)))
    assert noise == pytest.approx(expected, rel=1e-12)


def test_noise_is_gumbel() -> None:
    keys = torch.tensor([[row_key(9, 0, position)] for position in range(200)])
    noise = gumbel(keys, torch.arange(1000).expand(200, -1))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert noise.isfinite().all()
    assert abs(torch.corrcoef(noise[:2])[0, 1]) < 0.1


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63])
def test_early_words_are_the_hash_before_its_last_step(seed: int) -> None:
    key, hasher = row_key(seed, 1, 5), Hasher(300)
    for start in (0, 1, 151_000):
        early = hasher.early_words(key, start, start + 300)
        ids = torch.arange(start, start + 300)[None]
        keys = torch.tensor([[key]])
        assert early.tolist() == unfinished_words(keys, ids)[0].tolist()
        assert [w >> 33 for w in early.tolist()] == [w >> 33 for w in words(keys, ids)[0].tolist()]
