"""Finds to how many rows a step of few sequences is padded, by trying the loaded model.

Kernels for one or two rows are often slower than those for four, although all of them wait for the
same weights from memory. Padding does not change results: what the model computes exactly with its
least number of rows, it also computes exactly with more.
"""

import itertools
import statistics
import time

import torch

from neuron.layers.linear import Linear
from neuron.models.decoder import Decoder

_ROWS = (3, 4, 5, 6)
_TRIED_BYTES = 256 << 20
"""Weights read by one attempt: more than the processor's caches hold."""
_TRIES = 5
_WORTHWHILE = 0.95
"""Fraction of the unpadded time that padding must beat; a smaller gain may be chance."""


def quickest_rows(model: Decoder, least: int, dtype: torch.dtype) -> int:
    """Returns *least*, or a few rows more if steps of that size are faster here."""
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
