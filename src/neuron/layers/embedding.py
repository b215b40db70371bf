"""The token embedding and the output head; a checkpoint may use one matrix for both."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from neuron.layers.group import AllReduce, Group, gather_columns
from neuron.layers.linear import Kernel, LinearPlan, linear, pack
from neuron.layers.share import Share
from neuron.layers.weight_target import LoadUnit, WeightTarget, place

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

    def prepare(self, plan: LinearPlan) -> list[range]:
        """Settles on *plan*; returns the ranges of rows that are finished one by one."""
        self._plan = plan
        if plan.kernel is Kernel.PLAIN or not self.share.size:
            return [range(self.share.size)]
        rows = max(1, _SLICE_BYTES // (self.weight.shape[1] * self._dtype.itemsize))
        begins = range(0, self.share.size, rows)
        self._slices = [torch.empty(0)] * len(begins)
        return [range(begin, min(begin + rows, self.share.size)) for begin in begins]

    def converted_bytes(self, rows: range) -> int:
        """Memory that finishing *rows* takes beside them and the result."""
        is_converted = bool(self._slices) and self.weight.dtype != self._dtype
        return len(rows) * self.weight.shape[1] * self._dtype.itemsize * is_converted

    def finish(self, index: int, weight: torch.Tensor) -> None:
        """Converts the loaded rows of the range *index*, if they have to be; keeps no reference to
        *weight* then."""
        if self._slices:
            self._slices[index] = pack(weight.to(self._dtype))

    def units(
        self, plan: LinearPlan, name: str, stored: torch.dtype, device: torch.device
    ) -> Iterator[LoadUnit]:
        """How a head of its own, the checkpoint's tensor *name* of dtype *stored*, is loaded."""
        hidden = self.weight.shape[1]
        ranges = self.prepare(plan)
        if self._slices:
            sizes = [
                len(rows) * hidden * stored.itemsize + self.converted_bytes(rows) for rows in ranges
            ]
            self.weight = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
            for index, (rows, size) in enumerate(zip(ranges, sizes, strict=True)):
                part = _HeadSlice(self, index, rows, torch.empty(0, hidden, dtype=stored), name)
                yield LoadUnit(part.place, part.slots, part.finish, size)
            return

        def slots() -> dict[str, WeightTarget]:
            whole = (self.share.whole, hidden)
            return {name: WeightTarget(self.weight, whole, 0, self.share.begin)}

        yield LoadUnit(functools.partial(place, self, device), slots)

    def pad_to(self, rows: int) -> None:
        """From now on, pads smaller batches to *rows* rows."""
        self._plan = replace(self._plan, least_rows=rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps ``[rows, hidden]`` to float32 logits ``[rows, vocab]``, on rank 0 only."""
        weights = self._slices or [self.weight]
        outs = [linear(hidden, weight, None, self._plan) for weight in weights]
        own = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
        return gather_columns(own, self.share, self._group).float()


class _HeadSlice:
    """Some rows of a head that is not the embedding's; they are gone once they are packed."""

    def __init__(
        self, head: Head, index: int, rows: range, weight: torch.Tensor, name: str
    ) -> None:
        self._head, self._index, self._rows, self._name = head, index, rows, name
        self._weight = weight

    def place(self) -> None:
        """Allocates the rows."""
        self._weight = self._weight.new_empty(len(self._rows), self._weight.shape[1])

    def slots(self) -> dict[str, WeightTarget]:
        """Where the rows come from."""
        share = self._head.share
        whole = (share.whole, self._weight.shape[1])
        begin = share.begin + self._rows.start
        return {self._name: WeightTarget(self._weight, whole, 0, begin)}

    def finish(self) -> None:
        """Packs the rows and drops them."""
        self._head.finish(self._index, self._weight)
        self._weight = self._weight.new_empty(0)
