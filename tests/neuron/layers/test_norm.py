"""The norm equals transformers' to the bit, also where bfloat16 leaves it a choice."""

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from neuron.layers.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(50, 3, 64, generator=generator) * 5).to(dtype)
    ours, theirs = RMSNorm(64, 1e-6).to(dtype), Qwen3RMSNorm(64, 1e-6).to(dtype)
    weight = torch.randn(64, generator=generator).to(dtype)
    ours.weight.copy_(weight)
    theirs.weight.data.copy_(weight)
    assert torch.equal(ours(x), theirs(x))
