"""Linear maps; several projections of one input are one matrix, stacked row-wise.

There are two kernels. The plain one is ``torch.nn.functional.linear``. The packed one keeps the
matrix in oneDNN's own layout, which is 1.3 to 3 times as fast for the few rows of a decode step,
but calls private operators of torch. Which one is used, and with at least how many rows, is found
by a probe at load (``engine/machine/kernel_probe.py``).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.group import AllReduce, Group
from neuron.layers.share import Share
from neuron.layers.weight_target import LoadUnit, WeightTarget, place

_BATCH_HINT = 8
"""Number of rows for which oneDNN chooses the layout; used for all batches."""


class Kernel(StrEnum):
    """How a matrix is stored and multiplied."""

    PLAIN = "plain"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """How all linear maps of a model are computed."""

    kernel: Kernel = Kernel.PLAIN
    least_rows: int = 1
    """Smaller batches are padded to this many rows: kernels for one row often round differently,
    and those for four are often faster."""


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Converts *weight* ``[rows, inputs]`` to oneDNN's layout; RuntimeError if it has none."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
    return packed


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LinearPlan
) -> torch.Tensor:
    """Maps *x* ``[tokens, inputs]`` to ``[tokens, rows]``; *weight* is in the plan's layout."""
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
    """``y = x Wᵀ + b``, where the rows of W are the named *parts*, one after the other.

    Each rank of a group holds a share of the rows of every part, or of the columns.
    """

    def __init__(self, inputs: Share, parts: Mapping[str, Share], *, bias: bool = False) -> None:
        super().__init__()
        rows = sum(part.size for part in parts.values())
        self.inputs = inputs
        self.nbytes = 0
        """Bytes of the finished weight."""
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(rows, inputs.size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        self._plan = LinearPlan()

    def slots(self, prefix: str) -> dict[str, WeightTarget]:
        """Maps checkpoint names to the contiguous slices of the parameter that they fill."""
        slots: dict[str, WeightTarget] = {}
        sizes = [part.size for part in self.parts.values()]
        for (name, part), view in zip(
            self.parts.items(), torch.split(self.weight, sizes), strict=True
        ):
            whole = (part.whole, self.inputs.whole)
            is_column = part.size == part.whole  # then only columns can be divided
            cut = (1, self.inputs.begin) if is_column else (0, part.begin)
            slots[f"{prefix}{name}.weight"] = WeightTarget(view, whole, *cut)
        if self.bias is not None:
            for (name, part), view in zip(
                self.parts.items(), torch.split(self.bias, sizes), strict=True
            ):
                slots[f"{prefix}{name}.bias"] = WeightTarget(view, (part.whole,), 0, part.begin)
        return slots

    def finish(self, plan: LinearPlan) -> None:
        """Converts the loaded weight to the layout of *plan*; it cannot be loaded again."""
        self._plan = plan
        self.nbytes = self.weight.nbytes
        if plan.kernel is Kernel.PACKED:
            self.weight = nn.Parameter(pack(self.weight), requires_grad=False)

    def unit(self, prefix: str, plan: LinearPlan, device: torch.device) -> LoadUnit:
        """How it is loaded to *device*, where its parts' names begin with *prefix*."""
        return LoadUnit(
            functools.partial(place, self, device),
            functools.partial(self.slots, prefix),
            functools.partial(self.finish, plan),
            self.weight.nbytes if plan.kernel is Kernel.PACKED else 0,
        )

    def pad_to(self, rows: int) -> None:
        """From now on, pads smaller batches to *rows* rows."""
        self._plan = replace(self._plan, least_rows=rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps *x* ``[tokens, inputs]`` to ``[tokens, rows]``."""
        return self.own(x)

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """Computes this rank's part of the result."""
        return linear(x, self.weight, self.bias, self._plan)


class ColumnParallelLinear(Linear):
    """Each rank computes its share of the outputs from the whole input."""

    def __init__(self, inputs: int, parts: Mapping[str, Share], *, bias: bool = False) -> None:
        super().__init__(Share(0, inputs, inputs), parts, bias=bias)


class RowParallelLinear(Linear):
    """Each rank has its share of the inputs; the outputs are summed over the *group*."""

    def __init__(
        self, inputs: Share, name: str, outputs: int, group: Group, *, bias: bool = False
    ) -> None:
        super().__init__(inputs, {name: Share(0, outputs, outputs)}, bias=bias)
        self._is_alone = group.is_alone
        self._sum = AllReduce(group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps *x* ``[tokens, share of the inputs]`` to ``[tokens, outputs]``."""
        if self._is_alone:
            return super().own(x)
        out = self._sum(self.own(x))
        return out if self.bias is None else out + self.bias

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """Computes this rank's summand; the bias is added once, after the sum."""
        return linear(x, self.weight, None, self._plan)
