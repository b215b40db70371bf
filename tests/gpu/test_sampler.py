"""The sampler on an NVIDIA GPU draws what it draws on the CPU.

Marked ``gpu`` and skipped without one: ``bin/test -m gpu``.
"""

import pytest
import torch

from neuron.engine.sampling.draw import Draw, DrawParams
from neuron.engine.sampling.gumbel import row_key
from neuron.engine.sampling.logprobs import logprobs
from neuron.engine.sampling.topk import TopK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("gpu"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
CUTS = [(0, 1.0, 0.0), (0, 0.9, 0.0), (50, 0.9, 0.0), (2000, 0.99, 0.0), (0, 1.0, 0.02)]


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_draws_equal_the_cpus(scale: float) -> None:
    logits = torch.randn(40, 151_936, generator=torch.Generator().manual_seed(1)) * scale
    recipes = [DrawParams(row_key(3, 0, at), 1.0, *CUTS[at % len(CUTS)]) for at in range(40)]
    drawn = [
        Draw(part, TopK(part), list(range(40)), recipes).tokens().tolist()
        for part in (logits, logits.cuda())
    ]
    assert drawn[0] == drawn[1]


def test_log_probabilities_equal_the_cpus() -> None:
    logits = torch.randn(9, 151_936, generator=torch.Generator().manual_seed(2)) * 3
    ours, theirs = (logprobs(part, [5] * 9, [20] * 9) for part in (logits, logits.cuda()))
    for one, other in zip(ours, theirs, strict=True):
        assert one.token == pytest.approx(other.token, abs=1e-5)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
