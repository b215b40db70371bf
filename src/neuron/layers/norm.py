"""Root-mean-square normalisation (arXiv 1910.07467), computed in float32 as transformers does."""

import torch
from torch import nn


def normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x)`` over the last dimension, in x's dtype.

    The mean is a sum and a division in place: on a CPU that takes half of what ``mean`` does for
    the few rows of a decode step, and rounds the same.
    """
    wide = x if x.dtype is torch.float32 else x.float()
    scale = wide.square().sum(-1, keepdim=True).div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype)


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*x* ``[..., size]`` → the same shape and dtype; the weight is applied in x's dtype."""
        return self.weight * normalise(x, self.eps)


class HeadNorm(nn.Module):
    """The norms of query and key heads, which have a weight each, in one pass over both."""

    def __init__(self, heads: int, kv_heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(size), requires_grad=False)
        self.key = nn.Parameter(torch.empty(size), requires_grad=False)
        self.weights = nn.Buffer(torch.empty(heads + kv_heads, size), persistent=False)
        self._heads = heads
        self.eps = eps

    def finish(self) -> None:
        """Spreads the loaded weights over the heads; once, after loading."""
        self.weights[: self._heads] = self.query
        self.weights[self._heads :] = self.key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*x* ``[tokens, heads + kv_heads, size]``, the query heads first."""
        return self.weights * normalise(x, self.eps)
