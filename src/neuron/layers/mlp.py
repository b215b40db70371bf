"""The gated MLP (arXiv 2002.05202): ``down(activation(gate(x)) * up(x))``.

Must not know architectures: the activation is a parameter.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from neuron.layers.group import Group
from neuron.layers.linear import ColumnParallelLinear, Linear, RowParallelLinear
from neuron.layers.weight_target import WeightTarget


class GatedMLP(nn.Module):
    """Gate and up projections as one matrix, the *activation* of the gate, the down projection."""

    def __init__(
        self,
        hidden: int,
        inner: int,
        activation: Callable[[torch.Tensor], torch.Tensor],
        group: Group,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        share = group.share(inner)
        self.gate_up = ColumnParallelLinear(
            hidden, {"gate_proj": share, "up_proj": share}, bias=bias
        )
        self.down = RowParallelLinear(share, "down_proj", hidden, group, bias=bias)
        self.activation = activation

    def slots(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        """Yields checkpoint names with the (slices of) parameters that they fill."""
        for linear in self.linear_maps():
            yield from linear.slots(prefix).items()

    def linear_maps(self) -> tuple[Linear, ...]:
        """Its linear maps, in the order in which they are computed."""
        return (self.gate_up, self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps *x* ``[tokens, hidden]`` to the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (tokens, inner) each
        out: torch.Tensor = self.down(self.activation(gate) * up)
        return out
