"""The token embedding and the output head, which may share one matrix in the checkpoint."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.linear import Kernel, LinearPlan, linear, pack

_SLICE_BYTES = 64 << 20
"""Of a packed head's slices: no second copy of the head is ever in memory as a whole."""


class Embedding(nn.Module):
    """A matrix ``[vocab, hidden]``, one row for each token id."""

    def __init__(self, vocab: int, hidden: int, dtype: torch.dtype) -> None:
        """*dtype* of the numbers that come out; those of the matrix may be narrower."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, hidden), requires_grad=False)
        self._dtype = dtype

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[tokens]`` → ``[tokens, hidden]``."""
        return functional.embedding(tokens, self.weight).to(self._dtype)


class Head(nn.Module):
    """A linear map from the last hidden state to the logits of the vocabulary."""

    def __init__(self, weight: nn.Parameter, dtype: torch.dtype) -> None:
        """*weight* ``[vocab, hidden]``, which may be the embedding's; computes in *dtype*."""
        super().__init__()
        self.weight = weight
        self._dtype = dtype
        self._plan = LinearPlan()
        self._slices: list[torch.Tensor] = []

    def finish(self, plan: LinearPlan, *, shared: bool) -> None:
        """Brings the loaded weight into the layout of *plan*; *shared* with the embedding."""
        self._plan = plan
        if plan.kernel is Kernel.PLAIN:
            return
        rows = max(1, _SLICE_BYTES // (self.weight.shape[1] * self._dtype.itemsize))
        self._slices = [pack(part.to(self._dtype)) for part in torch.split(self.weight, rows)]
        if not shared:
            self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def pad_to(self, rows: int) -> None:
        """From now on fewer rows are padded to so many."""
        self._plan = replace(self._plan, least_rows=rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[rows, hidden]`` → float32 logits ``[rows, vocab]``."""
        weights = self._slices or [self.weight]
        outs = [linear(hidden, weight, None, self._plan) for weight in weights]
        return (outs[0] if len(outs) == 1 else torch.cat(outs, -1)).float()
