"""The largest logits of every row in a total order: value descending, then token id ascending.

One pass over the logits takes the maximum of every chunk of 64 tokens; the rest works on those. The
top *k* tokens lie in the top *k* chunks, ordered by maximum and then by position: a token of any
other chunk is beaten by the maximum of each of them, in value or else in id. So the result is
exact, ties included, and the same for a row in any batch. Must not know sampling.
"""

import torch

CHUNK = 64
_LOW = 0xFFFF_FFFF


class TopK:
    """The chunk maxima of *logits* ``[rows, vocab]``, float32, which must not change meanwhile.

    Values may be -inf. For a row with NaN, the result is undefined but within the vocabulary.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._vocab = logits.shape[1]
        even = self._vocab - self._vocab % CHUNK
        # A view, even without the last, incomplete chunk.
        chunks = logits[:, :even].view(len(logits), -1, CHUNK) if even else None
        maxima = [] if chunks is None else [chunks.amax(-1)]
        if even < self._vocab:
            maxima.append(logits[:, even:].amax(-1, keepdim=True))
        self._maxima = torch.cat(maxima, 1) if len(maxima) > 1 else maxima[0]  # (rows, chunks)

    def best(self) -> torch.Tensor:
        """The largest logit of each row, ``[rows, 1]``."""
        return self._maxima.amax(-1, keepdim=True)

    def argmax(self) -> torch.Tensor:
        """The best token of each row, int64 ``[rows]``."""
        # The first of equal ones, as argmax guarantees.
        chunk = self._maxima.argmax(-1, keepdim=True)
        ids = self._members(chunk)
        best: torch.Tensor = self._values(ids).argmax(-1, keepdim=True)
        return ids.gather(1, best)[:, 0].clamp_(max=self._vocab - 1)

    def top(
        self, count: int, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The top *count* tokens, or all if there are fewer: values and ids ``[rows, count]``.

        With *rows*, int64, only of those rows.
        """
        maxima = self._maxima if rows is None else self._maxima[rows]
        places = torch.arange(maxima.shape[1], device=maxima.device)
        chunks = _ids(_keys(maxima, places).topk(min(count, len(places)), sorted=False).values)
        ids = self._members(chunks)
        keys = _keys(self._values(ids, rows), ids).topk(min(count, self._vocab)).values
        ids = _ids(keys)
        return self._values(ids, rows), ids

    def _members(self, chunks: torch.Tensor) -> torch.Tensor:
        """The token ids of *chunks* ``[rows, n]``; the last chunk's may exceed the vocabulary."""
        inside = torch.arange(CHUNK, device=chunks.device)
        return (chunks[..., None] * CHUNK + inside).flatten(1)  # (rows, n * CHUNK)

    def _values(self, ids: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits at *ids*; -inf beyond the vocabulary."""
        known = ids.clamp(max=self._vocab - 1)
        if rows is None:
            values = self._logits.gather(1, known)
        else:
            values = self._logits[rows[:, None], known]
        if self._vocab % CHUNK:
            values.masked_fill_(ids >= self._vocab, -torch.inf)
        return values


def _keys(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Distinct int64 keys that order by (value descending, id ascending); larger is better."""
    # Adding zero turns -0.0 into 0.0, to which it is equal. Flipping a negative float's magnitude
    # bits makes its integer order that of the values.
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFF_FFFF)
    return (ordered.long() << 32) | (_LOW - ids)


def _ids(keys: torch.Tensor) -> torch.Tensor:
    return _LOW - (keys & _LOW)
