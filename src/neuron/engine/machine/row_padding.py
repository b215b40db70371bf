"""How many rows a step of few sequences is padded to, tried out on the loaded model.

Kernels for one or two rows are often slower than those for four, although all of them wait for the
same weights to be read from memory. Padding changes no result: whatever the model computes exactly
with its least number of rows it computes exactly with more.
"""

import itertools
import statistics
import time

import torch

from neuron.layers.linear import Linear
from neuron.models.decoder import Decoder

_ROWS = (3, 4, 5, 6)
_TRIED_BYTES = 256 << 20
"""Weights that one try reads: more than the processor's caches hold."""
_TRIES = 5
_WORTHWHILE = 0.95
"""Of the time without padding; less of a gain may be chance."""


def quickest_rows(model: Decoder, least: int, dtype: torch.dtype) -> int:
    """*least*, or a few more if steps of so many rows take less time here."""
    maps = _some_maps(model)
    candidates = (least, *(rows for rows in _ROWS if rows > least))
    inputs = {
        (rows, linear.inputs.size): torch.zeros(rows, linear.inputs.size, dtype=dtype)
        for rows, linear in itertools.product(candidates, maps)
    }
    seconds: dict[int, list[float]] = {rows: [] for rows in candidates}
    for _ in range(_TRIES):
        for rows in candidates:
            began = time.perf_counter()
            for linear in maps:
                linear.own(inputs[rows, linear.inputs.size])
            seconds[rows].append(time.perf_counter() - began)
    medians = {rows: statistics.median(taken) for rows, taken in seconds.items()}
    best = min(medians, key=medians.__getitem__)
    return best if medians[best] < _WORTHWHILE * medians[least] else least


def _some_maps(model: Decoder) -> list[Linear]:
    maps, size = [], 0
    for linear in model.linear_maps():
        maps.append(linear)
        size += linear.nbytes
        if size > _TRIED_BYTES:
            break
    return maps
