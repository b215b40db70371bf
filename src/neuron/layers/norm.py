"""Root-mean-square normalisation (arXiv 1910.07467), computed in float32 as transformers does.

There are two kinds, which differ where a narrow dtype rounds. Plain: ``weight * cast(x / rms(x))``.
Offset, as in Gemma: ``cast((1 + weight) * x / rms(x))``, with the weight stored as its distance
from one.
"""

import torch
from torch import nn


def normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x)`` over the last dimension, in float32.

    Uses a product, a sum and a factor instead of ``square`` and ``mean``: on a CPU they take half
    the time for the few rows of a decode step. If the size is a power of two, as head sizes are,
    both round the same.
    """
    wide = x if x.dtype is torch.float32 else x.float()
    scale = (wide * wide).sum(-1, keepdim=True).mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return wide * scale


class RMSNorm(nn.Module):
    """The norm of a hidden state, plain or *offset*."""

    def __init__(self, size: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        # Only for an offset norm: 1 + weight, in float32.
        self.factor = _wide(size) if offset else None
        self.eps = eps

    def finish(self) -> None:
        """Converts the loaded weight to the form that is applied; call once, after loading."""
        if self.factor is not None:
            self.factor.copy_(1 + self.weight.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises *x* ``[..., size]``; keeps shape and dtype."""
        if self.factor is not None:
            return (normalise(x, self.eps) * self.factor).to(x.dtype)
        return self.weight * normalise(x, self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """The norms of query and key heads, each with its own weight, in one pass over both."""

    def __init__(
        self, heads: int, kv_heads: int, size: int, eps: float, *, offset: bool = False
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(size), requires_grad=False)
        self.key = nn.Parameter(torch.empty(size), requires_grad=False)
        rows = heads + kv_heads
        self.weights = nn.Buffer(torch.empty(rows, size), persistent=False)
        self.factors = _wide(rows, size) if offset else None
        self._heads = heads
        self.eps = eps

    def finish(self) -> None:
        """Spreads the loaded weights over the heads; call once, after loading."""
        self.weights[: self._heads] = self.query
        self.weights[self._heads :] = self.key
        if self.factors is not None:
            self.factors.copy_(1 + self.weights.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises *x* ``[tokens, heads + kv_heads, size]``, with the query heads first."""
        if self.factors is not None:
            return (normalise(x, self.eps) * self.factors).to(x.dtype)
        return self.weights * normalise(x, self.eps).to(x.dtype)


def _wide(*shape: int) -> nn.Buffer:
    return nn.Buffer(torch.empty(shape, dtype=torch.float32), persistent=False)
