"""Linear maps. Several projections of one input are one matrix, stacked row-wise.

The plain member of a family to come: prepacked and quantised ones keep :meth:`slots` and
:meth:`forward`.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Module):
    """``y = x Wᵀ + b`` where the rows of W are the named *parts*, one after the other."""

    def __init__(self, inputs: int, parts: Mapping[str, int], *, bias: bool = False) -> None:
        super().__init__()
        rows = sum(parts.values())
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(rows, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None

    def slots(self, prefix: str) -> dict[str, torch.Tensor]:
        """Checkpoint name → the slice of the parameter that it fills; each is contiguous."""
        slots: dict[str, torch.Tensor] = {}
        sizes = list(self.parts.values())
        for kind, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor is not None:
                views = torch.split(tensor, sizes)
                names = (f"{prefix}{part}.{kind}" for part in self.parts)
                slots |= dict(zip(names, views, strict=True))
        return slots

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*x* ``[tokens, inputs]`` → ``[tokens, rows]``."""
        return functional.linear(x, self.weight, self.bias)
