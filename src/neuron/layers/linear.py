"""Linear maps. Several projections of one input are one matrix, stacked row-wise.

A family by *kernel*: the plain one is ``torch.nn.functional.linear``, the packed one keeps the
matrix in oneDNN's own layout, which is 1.3 to 3 times as fast for the few rows of a decode step.
Which one is used, and with how many rows at least, is found by a probe at load
(``engine/probe.py``): the packed one calls private operators of torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import nn
from torch.nn import functional

_BATCH_HINT = 8
"""The rows for which oneDNN chooses the layout; it is asked for no others."""


class Kernel(StrEnum):
    """How a matrix is kept and multiplied."""

    PLAIN = "plain"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """How all linear maps of a model are computed."""

    kernel: Kernel = Kernel.PLAIN
    least_rows: int = 1
    """Fewer rows are padded to so many: kernels for one row often round differently, and those for
    four are often quicker."""


def pack(weight: torch.Tensor) -> torch.Tensor:
    """*weight* ``[rows, inputs]`` in oneDNN's layout. Raises RuntimeError where it has none."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
    return packed


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LinearPlan
) -> torch.Tensor:
    """*x* ``[tokens, inputs]`` → ``[tokens, rows]``; *weight* is in the plan's layout."""
    tokens = len(x)
    missing = plan.least_rows - tokens
    if missing > 0:
        x = functional.pad(x, (0, 0, 0, missing))
    if plan.kernel is Kernel.PACKED:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        out = functional.linear(x, weight, bias)
    return out[:tokens] if missing > 0 else out


class Linear(nn.Module):
    """``y = x Wᵀ + b`` where the rows of W are the named *parts*, one after the other."""

    def __init__(self, inputs: int, parts: Mapping[str, int], *, bias: bool = False) -> None:
        super().__init__()
        rows = sum(parts.values())
        self.inputs = inputs
        self.nbytes = 0
        """Of the finished weight."""
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(rows, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        self._plan = LinearPlan()

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

    def finish(self, plan: LinearPlan) -> None:
        """Brings the loaded weight into the layout of *plan*; it cannot be loaded again."""
        self._plan = plan
        self.nbytes = self.weight.nbytes
        if plan.kernel is Kernel.PACKED:
            self.weight = nn.Parameter(pack(self.weight), requires_grad=False)

    def pad_to(self, rows: int) -> None:
        """From now on fewer rows are padded to so many."""
        self._plan = replace(self._plan, least_rows=rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*x* ``[tokens, inputs]`` → ``[tokens, rows]``."""
        return linear(x, self.weight, self.bias, self._plan)
