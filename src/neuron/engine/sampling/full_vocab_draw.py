"""The winner of a Gumbel-max draw among all tokens of a row, without exact noise for each.

Float64 noise for 152k tokens is what makes such a draw slow, and nearly all of it is wasted: only
tokens with extreme noise can win. Let *floor* be a score that some candidate is known to reach.
With ``u`` the uniform number of a token, its score reaches the floor only if
``-log u <= exp(score without noise - floor)``, hence only if ``1 - u`` is that small. This test
needs no logarithm, and runs in float32 on the first 31 bits of ``1 - u``, which are known one step
before the end of the hash. Tokens that pass are scored exactly, so the result is that of the
definition.

Why rounding loses nothing: The left side is too large by at most 2**-30, from the missing bits and
the half unit of ``u``; ``SLACK`` allows for 2**-30. The right side, from weights within 36 binary
orders of the best, has a relative error below 2**-14 (subtraction, scaling and exponent: 36 * 3 *
2**-24; exp2 and conversions: a few 2**-24), and an error of one unit from the floor of the weight,
which is added; the floor is lowered by ``MARGIN`` = 2**-9.
"""

import math

import numpy as np
import torch

from neuron.engine.sampling import gumbel
from neuron.engine.sampling.cpu_chunks import chunks

MARGIN = 2.0**-9
SLACK = 2.0**34  # of 2**64


class FullVocabDraw:
    """Finds the possible winners in rows of *vocab* tokens; buffers are reused for many rows."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._parts = [part for _, part in chunks(1, vocab, device)]
        if device.type == "cpu":
            width = max(part.stop - part.start for part in self._parts)
            self._hasher = gumbel.Hasher(width)
            self._buffer = torch.empty(width)

    def contenders(
        self, weights: torch.Tensor, bits: int, key: int, best_score: float, floor: float
    ) -> torch.Tensor:
        """Ids, ascending, of all tokens whose score may reach *floor*, and of some others.

        *weights* ``[vocab]`` and *bits* are those of ``nucleus.py``; *best_score* is the best
        token's score without noise.
        """
        # Both sides in units: 1 - u as a 64-bit integer times this scale, against the weight.
        scale = math.exp(floor - MARGIN - best_score) * 2.0 ** (bits - 64)
        passing = self._on_cpu if weights.device.type == "cpu" else self._on_gpu
        return passing(weights, key, scale, 1 + SLACK * scale)

    def _on_cpu(self, weights: torch.Tensor, key: int, scale: float, bound: float) -> torch.Tensor:
        """Tokens with ``scale * distance - weight <= bound``, chunk by chunk.

        The distance is ``2**64 * (1 - u)``. Beyond 2**63 it is folded back (x becomes 2**64 - x),
        which is smaller, so a few more tokens pass.
        """
        found = []
        for part in self._parts:
            words = torch.from_numpy(self._hasher.early_words(key, part.start, part.stop))
            distance = self._buffer[: len(words)].copy_(words)  # signed: w above 2**63 is w - 2**64
            distance.abs_().mul_(scale).sub_(weights[part])
            found.append((distance.numpy() <= bound).nonzero()[0] + part.start)
        return torch.from_numpy(np.concatenate(found))

    def _on_gpu(self, weights: torch.Tensor, key: int, scale: float, bound: float) -> torch.Tensor:
        """The same as :meth:`_on_cpu` for the whole row at once."""
        ids = torch.arange(len(weights), device=weights.device)
        words = gumbel.unfinished_words(torch.tensor(key, device=weights.device), ids)
        distance = words.float().abs_().mul_(scale).sub_(weights)
        return (distance <= bound).nonzero()[:, 0]
