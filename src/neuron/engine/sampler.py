"""From logits to the next token of every row.

Sampling is Gumbel-max (Gumbel 1954; Maddison et al., arXiv 1411.0030): the argmax of
``logit / temperature + noise`` over the candidates that truncation leaves is a draw from their
softmax. The noise is a hash of (seed, choice, position, token id) and of nothing else, so a draw
depends neither on the batch nor on what was drawn before: a stream that is resumed elsewhere from
its tokens goes on as if it had never moved, and a rounding difference in the logits changes a
token only where two scores all but tie.

Truncation is top-k, then top-p over what is left, then min-p, as in transformers.
"""

import math
from dataclasses import dataclass

import torch

from neuron.engine.messages import Sample
from neuron.engine.noise import gumbel, row_key

GREEDY_BELOW = 1e-5
"""A lower temperature is greedy: its scores would not fit float32."""
NARROW = 256
"""Most candidates of the fast path; a top-p nucleus that is larger has the row sorted."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How to choose the next token of one row."""

    sample: Sample
    prompt_tokens: int
    generated: int
    """Tokens of the answer that exist already."""

    @property
    def greedy(self) -> bool:
        return self.sample.temperature < GREEDY_BELOW

    @property
    def position(self) -> int:
        """The index, in prompt plus answer, of the token that is chosen now."""
        return self.prompt_tokens + self.generated


def sample_tokens(logits: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    """Chooses a token for each row of *logits* ``[rows, vocab]``, float32, which it may change.

    Returns int64 ``[rows]`` on the same device; -1 where a row's logits are not finite.
    """
    broken = ~torch.isfinite(logits.sum(-1))  # one pass: NaN and infinity survive a sum
    for index, row in enumerate(rows):
        if row.generated < row.sample.min_tokens and row.sample.end_tokens:
            logits[index, list(row.sample.end_tokens)] = -torch.inf
    tokens = logits.argmax(-1)
    hot = [index for index, row in enumerate(rows) if not row.greedy]
    if hot:
        where = torch.tensor(hot, device=logits.device)
        chosen = logits if len(hot) == len(rows) else logits.index_select(0, where)
        tokens.index_copy_(0, where, _draw(chosen, [rows[index] for index in hot]))
    return tokens.masked_fill_(broken, -1)


class _Parameters:
    """The rows' sampling parameters as columns ``[rows, 1]``."""

    def __init__(self, rows: list[SampleRow], device: torch.device) -> None:
        samples = [row.sample for row in rows]
        # A nucleus of 1 or more is everything, whatever the rounding of a running sum.
        top_p = [2.0 if s.top_p >= 1 else s.top_p for s in samples]
        log_min_p = [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samples]
        floats = [[s.temperature for s in samples], top_p, log_min_p]
        columns = torch.tensor(floats, dtype=torch.float32, device=device)[..., None]
        self.temperature, self.top_p, self.log_min_p = columns  # (rows, 1) each
        whole = [
            [s.top_k for s in samples],
            [row_key(s.seed, s.choice, row.position) for s, row in zip(samples, rows, strict=True)],
        ]
        self.top_k, self.key = torch.tensor(whole, dtype=torch.int64, device=device)[..., None]

    def pick(self, rows: torch.Tensor) -> "_Parameters":
        """The columns of some *rows*."""
        other = object.__new__(_Parameters)
        for name, column in vars(self).items():
            setattr(other, name, column[rows])
        return other


def _draw(logits: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    """Samples every row; each takes the cheapest path that is exact for it."""
    parameters = _Parameters(rows, logits.device)
    scaled = logits / parameters.temperature  # (rows, vocab)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    whole = [i for i, row in enumerate(rows) if not row.sample.top_k and row.sample.top_p >= 1]
    cut = sorted(set(range(len(rows))) - set(whole))
    if whole:
        index = torch.tensor(whole, device=logits.device)
        tokens[index] = _draw_whole(scaled[index], parameters.pick(index))
    if cut:
        index = torch.tensor(cut, device=logits.device)
        tokens[index] = _draw_cut(scaled[index], parameters.pick(index))
    return tokens


def _draw_whole(scaled: torch.Tensor, parameters: _Parameters) -> torch.Tensor:
    """Rows with neither top-k nor top-p: every token is a candidate unless min-p says no."""
    ids = torch.arange(scaled.shape[1], device=scaled.device)[None].expand_as(scaled)
    keep = scaled >= scaled.amax(-1, keepdim=True) + parameters.log_min_p
    return _choose(scaled, ids, keep, parameters)


def _draw_cut(scaled: torch.Tensor, parameters: _Parameters) -> torch.Tensor:
    """Rows with top-k or top-p: the largest candidates first, all of them only where needed."""
    vocab = scaled.shape[1]
    total = scaled.logsumexp(-1, keepdim=True)
    values, ids = scaled.topk(min(NARROW, vocab))
    mass = (values - total).exp().sum(-1, keepdim=True)
    small_k = (parameters.top_k > 0) & (parameters.top_k <= values.shape[1])
    nucleus_fits = (parameters.top_k == 0) & (mass >= parameters.top_p)
    tokens = _choose(values, ids, _keep(values, total, parameters), parameters)
    wide = (~(small_k | nucleus_fits))[:, 0].nonzero()[:, 0]
    if len(wide) and vocab > values.shape[1]:
        values, ids = scaled[wide].sort(-1, descending=True)
        rest = parameters.pick(wide)
        tokens[wide] = _choose(values, ids, _keep(values, total[wide], rest), rest)
    return tokens


def _keep(values: torch.Tensor, total: torch.Tensor, parameters: _Parameters) -> torch.Tensor:
    """Which of the candidates *values* ``[rows, candidates]``, in descending order, remain.

    *total* is the logsumexp of the whole rows. The first candidate always remains.
    """
    rank = torch.arange(values.shape[1], device=values.device)[None]
    in_k = (parameters.top_k == 0) | (rank < parameters.top_k)
    inside = values.masked_fill(~in_k, -torch.inf)
    norm = torch.where(parameters.top_k > 0, inside.logsumexp(-1, keepdim=True), total)
    share = (inside - norm).exp()
    before = share.cumsum(-1) - share  # the mass of better candidates
    keep = in_k & (before < parameters.top_p) & (values >= values[:, :1] + parameters.log_min_p)
    remains: torch.Tensor = keep | (rank == 0)
    return remains


def _choose(
    values: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor, parameters: _Parameters
) -> torch.Tensor:
    scores = values.double() + gumbel(parameters.key, ids)
    best: torch.Tensor = scores.masked_fill_(~keep, -torch.inf).argmax(-1, keepdim=True)
    chosen: torch.Tensor = ids.gather(1, best)[:, 0]
    return chosen
