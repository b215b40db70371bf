"""Softmax weights in whole units, and the mass of a nucleus.

A token weighs ``floor(2**bits * exp((logit - best) / temperature))`` units, with as many bits as
keep the sum of a whole row below 2**53. Sums of integers are exact in float64 in any order, so a
nucleus is the same set whether it is found by sorting or by threshold, alone or in a batch, on any
number of threads. A token below 2**-bits of the best one (2**-35 for 152k tokens) weighs nothing:
that loses at most 2**-17 of the mass in total.

Tokens are ordered as in ``topk.py``: by logit, then by id. A token is inside a nucleus of ``top_p``
if those before it weigh less than ``top_p`` of the total.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from neuron.engine.sampling.cpu_chunks import chunks

LOG2_E = math.log2(math.e)


def unit_bits(vocab: int) -> int:
    """The weight of the best token in units, as a power of two."""
    return 53 - max(vocab - 1, 1).bit_length()


def units(values: torch.Tensor, best: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights of logits *values* ``[rows, n]``: integers in float32.

    *best* ``[rows, 1]`` are the rows' largest logits, *scale* ``[rows, 1]`` is
    ``log2(e) / temperature``.
    """
    return units_of(values - best, scale, bits)


def units_of(gaps: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The same as :func:`units`, computed in place on *gaps*: logits minus their row's best."""
    # One operation after the other, so that rounding is the same in every shape.
    return gaps.mul_(scale).add_(bits).exp2_().floor_()


class Weights:
    """The weights of whole rows: *logits* ``[rows, vocab]``, *best* and *scale* ``[rows, 1]``.

    *buffer*, with the shape of *logits*, receives the units if given.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        best: torch.Tensor,
        scale: torch.Tensor,
        buffer: torch.Tensor | None = None,
    ) -> None:
        rows, vocab = logits.shape
        self.bits = unit_bits(vocab)
        self.units = torch.empty_like(logits) if buffer is None else buffer  # (rows, vocab)
        total = torch.zeros(rows, dtype=torch.float64, device=logits.device)
        for top, left in chunks(rows, vocab, logits.device):
            part = self.units[top, left]
            torch.sub(logits[top, left], best[top], out=part)
            units_of(part, scale[top], self.bits)
            total[top] += part.sum(-1, dtype=torch.float64)
        self._total: list[float] = total.tolist()

    def mass(self, row: int, top_k: int) -> float:
        """The units of a row's *top_k* best tokens; 0 = all tokens."""
        if not 0 < top_k < self.units.shape[1]:
            return self._total[row]
        return float(self.units[row].topk(top_k, sorted=False).values.sum(dtype=torch.float64))


def mass_before(logits: torch.Tensor, weights: torch.Tensor, token: int) -> float:
    """Units of the tokens that come before *token* in one row; both tensors are ``[vocab]``."""
    weight = float(weights[token])
    mass = 0.0
    for _, part in chunks(1, len(weights), weights.device):
        heavier = functional.threshold(weights[part], weight, 0.0)
        mass += float(heavier.sum(dtype=torch.float64))
    same = equals(weights, weight)  # different logits may round to the same weight
    before = logits[same] > logits[token]
    before |= (logits[same] == logits[token]) & (same < token)
    return mass + weight * int(before.sum())


def equals(values: torch.Tensor, value: float) -> torch.Tensor:
    """The indices of *values* ``[n]`` that equal *value*, ascending, int64."""
    if values.device.type == "cpu":  # NumPy is several times faster
        return torch.from_numpy((values.numpy() == np.float32(value)).nonzero()[0])
    return (values == value).nonzero()[:, 0]
