"""Root-mean-square normalisation (arXiv 1910.07467), computed in float32 as transformers does."""

import torch
from torch import nn


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension, or per head over ``[..., heads, dim]``."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*x* ``[..., size]`` → the same shape and dtype; the weight is applied in x's dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)
