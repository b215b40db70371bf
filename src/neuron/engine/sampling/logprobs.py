"""Logprobs of the model's own distribution: log_softmax of its unchanged logits.

A row's exponentials are summed by halving: elementwise additions in a fixed order, so a row has the
same bits alone and in any batch, on any number of threads.
"""

import torch

from neuron.engine.sampling.topk import TopK
from neuron.ipc.messages import Logprobs

SLICE_BYTES = 32 << 20
"""Limit on logits that are processed at once; temporaries take at most twice as much on a GPU, and
one row's worth on a CPU."""


def slice_rows(vocab: int) -> int:
    """Rows of float32 logits that fit into the limit; at least one."""
    return max(1, SLICE_BYTES // (4 * vocab))


def logprobs(logits: torch.Tensor, tokens: list[int], tops: list[int]) -> list[Logprobs]:
    """Logprobs of *tokens* and *tops* top tokens, one each per row of *logits* ``[rows, vocab]``.

    The logits must be finite. The sum is in float64 over float32 exponentials: within 1e-6 of the
    exact log_softmax.
    """
    if not tokens:
        return []
    topk = TopK(logits)
    log_total = log_sum(logits, topk.best())
    own = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).double()
    values, ids = topk.top(max(*tops, 1))
    scores = (values.double() - log_total).tolist()
    rows = zip((own - log_total)[:, 0].tolist(), ids.tolist(), scores, tops, strict=True)
    return [
        Logprobs(token, list(zip(best[:top], score[:top], strict=True)))
        for token, best, score, top in rows
    ]


def log_sum(logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The log of the sum of exponentials, float64 ``[rows, 1]``; *best* are the rows' maxima."""
    # On a CPU one row at a time, which stays in the cache.
    rows = 1 if logits.device.type == "cpu" else len(logits)
    sums = [
        _halve(logits[at : at + rows] - best[at : at + rows]) for at in range(0, len(logits), rows)
    ]
    return best.double() + torch.cat(sums).log()


def _halve(gaps: torch.Tensor) -> torch.Tensor:
    """The sum of the exponentials of *gaps* ``[rows, n]``, as ``[rows, 1]``; overwrites *gaps*."""
    terms = gaps.exp_()
    while (width := terms.shape[1]) > 1:
        half = (width + 1) // 2
        sums = terms[:, :half].double()  # a copy only the first time
        sums[:, : width - half] += terms[:, half:]
        terms = sums
    return terms.double()
