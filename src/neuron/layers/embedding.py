"""The token embedding and the output head; a checkpoint may use one matrix for both."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.group import AllReduce, Group, gather_columns
from neuron.layers.linear import Kernel, LinearPlan, linear, pack
from neuron.layers.share import Share

_SLICE_BYTES = 64 << 20
"""Size of a packed head's slices, so that a complete second copy is never in memory."""


class Embedding(nn.Module):
    """A matrix ``[vocab, hidden]``, one row per token id; each rank holds a share of the rows."""

    def __init__(self, vocab: int, hidden: int, dtype: torch.dtype, group: Group) -> None:
        """*dtype* is that of the output; the matrix may be narrower."""
        super().__init__()
        self.share = group.share(vocab)
        self.weight = nn.Parameter(torch.empty(self.share.size, hidden), requires_grad=False)
        self._dtype = dtype
        self._is_alone = group.is_alone
        self._sum = AllReduce(group)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps token ids ``[tokens]`` to ``[tokens, hidden]``."""
        if self._is_alone:
            return functional.embedding(tokens, self.weight).to(self._dtype)
        own = tokens - self.share.begin
        is_other = (own < 0) | (own >= self.share.size)
        if not self.share.size:  # more ranks than rows
            out = torch.zeros(len(tokens), self.weight.shape[1], dtype=self._dtype)
            return self._sum(out.to(tokens.device))
        out = functional.embedding(own.masked_fill(is_other, 0), self.weight).to(self._dtype)
        return self._sum(out.masked_fill_(is_other[:, None], 0.0))


class Head(nn.Module):
    """The linear map from the last hidden state to logits; each rank holds a share of the rows."""

    def __init__(
        self, weight: nn.Parameter, dtype: torch.dtype, share: Share, group: Group
    ) -> None:
        """Computes in *dtype*. *weight* is ``[share of the vocabulary, hidden]``.

        It may be the embedding's.
        """
        super().__init__()
        self.weight = weight
        self.share = share
        self._group = group
        self._dtype = dtype
        self._plan = LinearPlan()
        self._slices: list[torch.Tensor] = []

    def finish(self, plan: LinearPlan, *, shared: bool) -> None:
        """Converts the loaded weight, which may be *shared* with the embedding, to *plan*."""
        if not self.share.size:
            return  # nothing to pack: this rank holds no part of the vocabulary
        self._plan = plan
        if plan.kernel is Kernel.PLAIN:
            return
        rows = max(1, _SLICE_BYTES // (self.weight.shape[1] * self._dtype.itemsize))
        self._slices = [pack(part.to(self._dtype)) for part in torch.split(self.weight, rows)]
        if not shared:
            self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def pad_to(self, rows: int) -> None:
        """From now on, pads smaller batches to *rows* rows."""
        self._plan = replace(self._plan, least_rows=rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps ``[rows, hidden]`` to float32 logits ``[rows, vocab]``, on rank 0 only."""
        weights = self._slices or [self.weight]
        outs = [linear(hidden, weight, None, self._plan) for weight in weights]
        own = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
        return gather_columns(own, self.share, self._group).float()
