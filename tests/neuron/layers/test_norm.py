"""The norms equal transformers' to the bit, also where bfloat16 leaves a choice."""

from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from neuron.layers.norm import HeadNorm, RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("oracle", "offset"), [(Qwen3RMSNorm, False), (Gemma3RMSNorm, True)])
def test_equal_to_transformers(dtype: torch.dtype, oracle: Any, offset: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(50, 3, 64, generator=generator) * 5).to(dtype)
    weights = torch.randn(2, 64, generator=generator).to(dtype)
    theirs = []
    for weight in weights:
        norm = oracle(64, 1e-6).to(dtype)
        norm.weight.data.copy_(weight)
        theirs.append(norm(x))

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ours = RMSNorm(64, 1e-6, offset=offset)
        both = HeadNorm(2, 1, 64, 1e-6, offset=offset)
    finally:
        torch.set_default_dtype(before)
    ours.weight.copy_(weights[0])
    ours.finish()
    assert torch.equal(ours(x), theirs[0])

    both.query.copy_(weights[0])
    both.key.copy_(weights[1])
    both.finish()
    assert torch.equal(both(x)[:, :2], theirs[0][:, :2])
    assert torch.equal(both(x)[:, 2:], theirs[1][:, 2:])


def test_the_two_kinds_round_differently() -> None:
    """The same function in exact arithmetic; were they one, the tests above would prove less."""
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain, offset = (RMSNorm(64, 1e-6, offset=kind).to(torch.bfloat16) for kind in (False, True))
    plain.weight.fill_(1.25)
    offset.weight.fill_(0.25)
    offset.finish()
    assert torch.allclose(plain(x), offset(x), rtol=1e-2)
    assert not torch.equal(plain(x), offset(x))
