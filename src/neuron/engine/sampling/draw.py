"""Draws one token for each of some rows: temperature, truncation, noise.

Each row takes the cheapest way that gives exactly what ``sampler.py`` defines: from the top 64
tokens if those that truncation keeps are among them, else from the top 512, else from the whole
row. On a whole row no cut is searched for. If truncation would keep the winner among all tokens, it
is also the winner among the kept ones; if not, truncation would keep no token that ranks after it
either, and the next best is tried. (Sampling first and testing membership afterwards is the idea of
FlashInfer's sorting-free sampling, arXiv 2501.01005.) Must not know requests.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from neuron.engine.sampling.full_vocab_draw import MARGIN, FullVocabDraw
from neuron.engine.sampling.gumbel import gumbel
from neuron.engine.sampling.nucleus import LOG2_E, Weights, mass_before, unit_bits, units
from neuron.engine.sampling.topk import TopK

WIDTHS = (64, 512)
"""Numbers of top tokens that are examined before the whole row is."""


@dataclass(frozen=True, slots=True)
class DrawParams:
    """How one row is drawn from; the fields mean the same as in ``messages.SamplingParams``."""

    key: int
    """Key of the noise (``gumbel.row_key``)."""
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def nucleus(self) -> bool:
        return self.top_p < 1


class Columns:
    """The draw parameters of some rows as columns ``[rows, 1]``."""

    def __init__(self, params: list[DrawParams], device: torch.device) -> None:
        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        self.temperature = column([r.temperature for r in params])
        self.scale = column([LOG2_E / r.temperature for r in params]).float()
        self.top_p = column([r.top_p for r in params])
        self.log_min_p = column([math.log(r.min_p) if r.min_p else -math.inf for r in params])
        whole = [[r.top_k or 1 << 62 for r in params], [r.key for r in params]]
        self.top_k, self.key = torch.tensor(whole, dtype=torch.int64, device=device)[..., None]


class Draw:
    """A draw for each of the rows *where* of *logits* ``[rows, vocab]``, finite or -inf.

    Every row has a finite logit. *topk* is that of *logits*.
    """

    def __init__(
        self, logits: torch.Tensor, topk: TopK, where: list[int], params: list[DrawParams]
    ) -> None:
        self._logits, self._topk, self._where, self._params = logits, topk, where, params
        self._vocab = logits.shape[1]
        self._best = topk.best()  # (rows of logits, 1)
        self._leaders: dict[int, tuple[int, float]] = {}  # the narrow draw's winner and its score
        # Only where truncation removes much is the next width likely to be enough.
        self._hopeless = {i for i, r in enumerate(params) if not (r.nucleus or r.min_p or r.top_k)}
        self._full_draw: FullVocabDraw | None = None
        self._buffer: torch.Tensor | None = None
        self._rows: dict[int, tuple[Weights, int]] = {}  # a row's weights, and its index in them
        self._weigh([i for i, r in enumerate(params) if r.nucleus and not self._small(r)])

    def tokens(self) -> torch.Tensor:
        """The drawn tokens, int64 ``[len(where)]``."""
        chosen = [-1] * len(self._where)
        left = list(range(len(chosen)))
        for width in WIDTHS:
            # With top-k the nucleus is part of k tokens, so all of those must be examined.
            now = [i for i in left if not width < self._params[i].top_k <= WIDTHS[-1]]
            if width != WIDTHS[0]:
                now = [i for i in now if i not in self._hopeless]
            if now:
                for index, token in self._narrow(now, width):
                    chosen[index] = token
            left = [index for index in left if chosen[index] < 0]
        for index in left:
            chosen[index] = self._wide(index)
        return torch.tensor(chosen, device=self._logits.device)

    def _small(self, param: DrawParams) -> bool:
        return 0 < param.top_k <= WIDTHS[-1]

    def _weigh(self, indices: list[int]) -> None:
        """Computes the weights of some whole rows."""
        if not indices:
            return
        where = [self._where[index] for index in indices]
        every = where == list(range(len(self._logits)))
        columns = Columns([self._params[index] for index in indices], self._logits.device)
        logits = self._logits if every else self._logits[where]
        weights = Weights(logits, self._best if every else self._best[where], columns.scale)
        self._rows |= {index: (weights, at) for at, index in enumerate(indices)}

    def _weights(self, index: int) -> tuple[Weights, int]:
        """A whole row's weights and its index in them; valid until the next call."""
        if index in self._rows:
            return self._rows[index]
        row = self._where[index]
        if self._buffer is None:  # new memory for each row would cost as much as the row itself
            self._buffer = torch.empty_like(self._logits[:1])
        scale = Columns([self._params[index]], self._logits.device).scale
        here = slice(row, row + 1)
        return Weights(self._logits[here], self._best[here], scale, self._buffer), 0

    def _narrow(self, indices: list[int], width: int) -> list[tuple[int, int]]:
        """Draws from the top *width* tokens of each row; (index, token) where that is exact."""
        columns = Columns([self._params[index] for index in indices], self._logits.device)
        where = [self._where[index] for index in indices]
        rows = None
        if where != list(range(len(self._logits))):
            rows = torch.tensor(where, device=self._logits.device)
        values, ids = self._topk.top(width, rows)  # (rows, width)
        keep = self._keep(values, columns, indices)
        scores = values.double() / columns.temperature + gumbel(columns.key, ids)
        scores.masked_fill_(~keep, -torch.inf)
        floors = scores.amax(-1, keepdim=True)
        tokens = ids.masked_fill(scores < floors, self._vocab).amin(-1)
        seen = values.shape[1]
        exact = ~keep[:, -1] | (columns.top_k[:, 0] <= seen) | (seen == self._vocab)
        leaders = list(zip(tokens.tolist(), floors[:, 0].tolist(), strict=True))
        self._leaders |= dict(zip(indices, leaders, strict=True))
        found = zip(indices, tokens.tolist(), exact.tolist(), strict=True)
        return [(index, token) for index, token, sure in found if sure]

    def _keep(self, values: torch.Tensor, columns: Columns, indices: list[int]) -> torch.Tensor:
        """Which of the top tokens *values* ``[rows, n]`` truncation keeps; always the first."""
        best = values[:, :1]
        rank = torch.arange(values.shape[1], device=values.device)
        keep: torch.Tensor = rank < columns.top_k
        if any(self._params[index].nucleus for index in indices):
            bits = unit_bits(self._vocab)
            weights = units(values, best, columns.scale, bits).double().masked_fill_(~keep, 0.0)
            # Integers: these sums are exact in any order.
            before = weights.cumsum(-1) - weights
            masses = dict(zip(indices, weights.sum(-1).tolist(), strict=True))
            limits = [self._limit(index, mass) for index, mass in masses.items()]
            keep &= (
                before < torch.tensor(limits, dtype=torch.float64, device=values.device)[:, None]
            )
            self._hopeless |= {
                i
                for i, limit in zip(indices, limits, strict=True)
                if masses[i] < limit / 2 < math.inf
            }
        gap = (values.double() - best) / columns.temperature
        keep &= gap >= columns.log_min_p
        return keep | (rank == 0)

    def _limit(self, index: int, narrow_mass: float) -> float:
        """The mass at which the nucleus ends, in units."""
        param = self._params[index]
        if not param.nucleus:
            return math.inf
        if self._small(param):
            return param.top_p * narrow_mass
        weights, at = self._rows[index]
        return param.top_p * weights.mass(at, param.top_k)

    def _wide(self, index: int) -> int:
        """Draws from a whole row, where more than the top few tokens remain."""
        if self._full_draw is None:
            self._full_draw = FullVocabDraw(self._vocab, self._logits.device)
        weights, at = self._weights(index)
        fence: tuple[float, int] | None = None
        for value, token in self._ranking(index, self._full_draw, weights.units[at], weights.bits):
            rank = (-value, token)
            if fence is not None and rank > fence:
                continue
            if self._inside(index, token):
                return token
            fence = rank
        # The narrow draw counts its winner as inside; an exp2 that rounds by shape could lead here.
        return self._leaders[index][0]

    def _ranking(
        self, index: int, full_draw: FullVocabDraw, units_: torch.Tensor, bits: int
    ) -> Iterator[tuple[float, int]]:
        """(logit, token) of the candidates, best score first, ties by lower id.

        Candidates are kept by min-p and score at least about as much as the narrow draw's winner,
        which is one of them.
        """
        param, row, (_, floor) = self._params[index], self._where[index], self._leaders[index]
        best = float(self._best[row])
        ids = full_draw.contenders(units_, bits, param.key, best / param.temperature, floor)
        columns = Columns([param], units_.device)
        values = self._logits[row][ids].double()
        scores = values / columns.temperature[0] + gumbel(columns.key, ids[None])[0]
        kept = (values - best) / columns.temperature[0] >= columns.log_min_p[0]
        kept &= scores >= floor - MARGIN
        ids, values, scores = ids[kept], values[kept], scores[kept]
        order = scores.argsort(descending=True, stable=True)
        return zip(values[order].tolist(), ids[order].tolist(), strict=True)

    def _inside(self, index: int, token: int) -> bool:
        """Whether top-k and top-p keep *token*."""
        param, logits = self._params[index], self._logits[self._where[index]]
        if param.top_k:
            value = logits[token]
            rank = int((logits > value).sum()) + int((logits[:token] == value).sum())
            if rank >= param.top_k:
                return False
        if not param.nucleus:
            return True
        weights, at = self._rows[index]
        return mass_before(logits, weights.units[at], token) < self._limit(index, 0.0)
