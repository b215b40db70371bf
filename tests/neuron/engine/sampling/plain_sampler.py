"""The definition of a draw, written down as plainly as can be: sort everything, noise for all."""

import math

import torch

from neuron.engine.sampling.draw import DrawParams
from neuron.engine.sampling.gumbel import gumbel
from neuron.engine.sampling.nucleus import LOG2_E, unit_bits, units


def plain_draw(logits: torch.Tensor, param: DrawParams) -> int:
    """Draws from one row ``[vocab]``."""
    vocab = len(logits)
    ids = torch.arange(vocab)
    order = logits.sort(descending=True, stable=True).indices  # equal logits: lower id first
    values = logits[order]
    keep = torch.ones(vocab, dtype=torch.bool)
    if param.top_k:
        keep &= ids < param.top_k
    if param.top_p < 1:
        scale = torch.tensor([[LOG2_E / param.temperature]])
        mass = units(values[None], values[None, :1], scale, unit_bits(vocab))[0].double()
        mass[~keep] = 0
        keep &= mass.cumsum(0) - mass < param.top_p * float(mass.sum())
    if param.min_p:
        gap = (values.double() - values[0].double()) / param.temperature
        keep &= gap >= math.log(param.min_p)
    keep[0] = True
    key = torch.tensor([[param.key]])
    scores = values.double() / param.temperature + gumbel(key, order[None])[0]
    scores[~keep] = -torch.inf
    return int(order[scores == scores.max()].min())
