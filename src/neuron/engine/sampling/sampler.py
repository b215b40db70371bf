"""From logits to the next token of every row.

The order is vLLM's: allowed tokens, bad tokens, min_tokens, bias, penalties
(``logits_processors.py``); then temperature and truncation, which is top-k, then top-p over what is
left, then min-p, as in transformers. A row's logprobs are of the logits before all of this.

Sampling is Gumbel-max (Gumbel 1954; Maddison et al., arXiv 1411.0030): the argmax of
``logit / temperature + noise``, in float64, over the candidates that truncation keeps, is a draw
from their softmax. The noise is a hash of (seed, choice, position, token id) and nothing else, so a
draw depends neither on the batch nor on earlier draws: a stream that resumes elsewhere from its
tokens continues as if it had never moved, and a rounding difference in the logits changes a token
only where two scores are all but tied. Equal logits rank by token id, lower first, and so do equal
scores.
"""

from dataclasses import dataclass

import torch

from neuron.engine.sampling.draw import Draw, DrawParams
from neuron.engine.sampling.gumbel import row_key
from neuron.engine.sampling.logits_processors import LogitsProcessor, needs_processing
from neuron.engine.sampling.logprobs import logprobs
from neuron.engine.sampling.topk import TopK
from neuron.ipc.messages import Logprobs, SamplingParams

GREEDY_BELOW = 1e-5
"""Lower temperatures are greedy: the gaps between their scores would exceed float32."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How to sample the next token of one row."""

    sample: SamplingParams
    prompt_tokens: int
    generated: int
    """Number of answer tokens that already exist."""
    processor: LogitsProcessor | None = None
    """Changes the logits first; required if the sample :func:`needs_processing`."""

    @property
    def greedy(self) -> bool:
        return self.sample.temperature < GREEDY_BELOW

    @property
    def position(self) -> int:
        """The index, in prompt plus answer, of the token to be sampled."""
        return self.prompt_tokens + self.generated


@dataclass(frozen=True, slots=True)
class Chosen:
    """The next token of a row; -1 if its logits were not finite."""

    token: int
    logprobs: Logprobs | None = None


def choose(logits: torch.Tensor, rows: list[SampleRow]) -> list[Chosen]:
    """Samples like :func:`sample_tokens`, with logprobs for the rows that ask."""
    asking = [index for index, row in enumerate(rows) if row.sample.logprobs is not None]
    raw = logits[asking] if asking else logits  # a copy: the next line may change the original
    tokens: list[int] = sample_tokens(logits, rows).tolist()
    fine = [at for at, index in enumerate(asking) if tokens[index] >= 0]
    scored = [asking[at] for at in fine]
    found = logprobs(
        raw if len(fine) == len(raw) else raw[fine],
        [tokens[index] for index in scored],
        [rows[index].sample.logprobs or 0 for index in scored],
    )
    entries = dict(zip(scored, found, strict=True))
    return [Chosen(token, entries.get(index)) for index, token in enumerate(tokens)]


def sample_tokens(logits: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    """Samples a token for each row of *logits* ``[rows, vocab]``, float32, which it may change.

    Returns int64 ``[rows]`` on the same device; -1 where a row's logits are not finite.
    """
    broken = ~torch.isfinite(logits.sum(-1))  # one pass: NaN and infinity survive a sum
    for index, row in enumerate(rows):
        assert row.processor is not None or not needs_processing(row.sample)
        if row.processor is not None:
            row.processor.apply(logits[index], row.generated)
    topk = TopK(logits)
    hot = [index for index, row in enumerate(rows) if not row.greedy]
    if not hot:
        return topk.argmax().masked_fill_(broken, -1)
    tokens = topk.argmax() if len(hot) < len(rows) else broken.long()
    # A row without finite logits cannot be drawn from; zeros replace it, and its token is ignored.
    params = [_draw_params(rows[index]) for index in hot]
    if bool(broken.any()):
        logits = logits.masked_fill(broken[:, None], 0.0)
        topk = TopK(logits)
    tokens[hot] = Draw(logits, topk, hot, params).tokens()
    return tokens.masked_fill_(broken, -1)


def _draw_params(row: SampleRow) -> DrawParams:
    sample = row.sample
    key = row_key(sample.seed, sample.choice, row.position)
    return DrawParams(key, sample.temperature, sample.top_k, sample.top_p, sample.min_p)
