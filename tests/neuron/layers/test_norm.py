"""The norms equal transformers' to the bit, also where bfloat16 leaves a choice."""

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from neuron.layers.norm import HeadNorm, RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(50, 3, 64, generator=generator) * 5).to(dtype)
    weights = torch.randn(2, 64, generator=generator).to(dtype)
    theirs = []
    for weight in weights:
        norm = Qwen3RMSNorm(64, 1e-6).to(dtype)
        norm.weight.data.copy_(weight)
        theirs.append(norm(x))

    ours = RMSNorm(64, 1e-6).to(dtype)
    ours.weight.copy_(weights[0])
    assert torch.equal(ours(x), theirs[0])

    both = HeadNorm(2, 1, 64, 1e-6).to(dtype)
    both.query.copy_(weights[0])
    both.key.copy_(weights[1])
    both.finish()
    assert torch.equal(both(x)[:, :2], theirs[0][:, :2])
    assert torch.equal(both(x)[:, 2:], theirs[1][:, 2:])
