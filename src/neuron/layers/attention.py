"""Attention over the paged KV cache: the contract, and the reference path in plain torch.

An :class:`AttentionStep` says what each sequence of a step attends to; the model passes it queries,
keys and values layer by layer. Every path computes one sequence at a time, so that no result
depends on what else is in the batch. The reference path runs on every device and is the oracle for
the others (``tiles.py``). Must not know sequences, scheduling or architectures.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.nn import functional

from neuron.layers.paging import BLOCK_TOKENS

Pages = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer's cache, ``[blocks, 16, kv_heads, head_dim]`` each."""
Window = int | None
"""How many positions back a token sees, itself included; None = all."""


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """The tokens of one sequence in a step."""

    start: int
    """Index of its first token in the flat batch."""
    count: int
    context: int
    """Number of its tokens that the cache already holds."""
    blocks: list[int]
    """The sequence's block table."""

    @property
    def length(self) -> int:
        """Tokens in the cache once the new ones are written."""
        return self.context + self.count


class AttentionStep(ABC):
    """What attention layers need to know about a step; made once for all layers."""

    def __init__(self, rows: list[AttentionRow], slots: torch.Tensor) -> None:
        self.rows = rows
        self.slots = slots
        """``[tokens]``, the cache slot of each new token's key and value: block * 16 + offset."""

    @abstractmethod
    def attend(
        self, query: torch.Tensor, pages: Pages, window: Window, scale: float
    ) -> torch.Tensor:
        """Attends with *query* ``[tokens, heads, head_dim]`` to the layer's *pages*.

        Returns the query's shape.
        """


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pages: Pages,
    step: AttentionStep,
    window: Window,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Writes the new keys and values into a layer's pages, then attends.

    *query* ``[tokens, heads, head_dim]``; *key*, *value* ``[tokens, kv_heads, head_dim]``; *scale*
    multiplies the scores, by default ``head_dim ** -0.5``. The result has the query's shape.
    """
    keys, values = pages
    keys.view(-1, *key.shape[1:]).index_copy_(0, step.slots, key)
    values.view(-1, *value.shape[1:]).index_copy_(0, step.slots, value)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return step.attend(query, pages, window, scale)


@dataclass(frozen=True, slots=True)
class _View:
    """What one row attends to in layers with the same window."""

    row: AttentionRow
    begin: int
    """The first position that any of its tokens can see."""
    blocks: torch.Tensor
    mask: torch.Tensor | None
    causal: bool


class ReferenceStep(AttentionStep):
    """Gathers each sequence's pages and calls scaled_dot_product_attention on them."""

    def __init__(
        self,
        rows: list[AttentionRow],
        slots: torch.Tensor,
        windows: Collection[Window],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(rows, slots)
        self._views = {
            window: [_view(row, window, slots.device, dtype) for row in rows] for window in windows
        }

    def attend(
        self, query: torch.Tensor, pages: Pages, window: Window, scale: float
    ) -> torch.Tensor:
        outs = []
        for view in self._views[window]:
            own = query[view.row.start : view.row.start + view.row.count]
            keys, values = (_gather(part, view) for part in pages)
            outs.append(_attend_row(own, keys, values, view, scale))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _view(row: AttentionRow, window: Window, device: torch.device, dtype: torch.dtype) -> _View:
    begin = 0 if window is None else max(0, row.context - window + 1)
    first, last = begin // BLOCK_TOKENS, -(-row.length // BLOCK_TOKENS)
    blocks = torch.tensor(row.blocks[first:last], device=device)
    narrow = window is not None and row.length > window
    if row.count == 1:
        return _View(row, begin, blocks, None, causal=False)
    if row.context == 0 and not narrow:
        return _View(row, begin, blocks, None, causal=True)
    queries = torch.arange(row.context, row.length, device=device)[:, None]
    keys = torch.arange(begin, row.length, device=device)[None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)  # (count, keys)
    return _View(row, begin, blocks, mask.masked_fill_(hidden, -torch.inf), causal=False)


def _gather(pages: torch.Tensor, view: _View) -> torch.Tensor:
    """The cached tokens from ``view.begin`` on: ``[length, kv_heads, head_dim]``."""
    flat = pages.index_select(0, view.blocks).flatten(0, 1)
    before = view.begin // BLOCK_TOKENS * BLOCK_TOKENS
    return flat[view.begin - before : view.row.length - before]


def _attend_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: _View, scale: float
) -> torch.Tensor:
    count, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # Key heads as the batch, the query heads of each as heads; expanding does not copy.
    grouped = query.reshape(count, kv_heads, group, dim).permute(1, 2, 0, 3)
    shape = (kv_heads, group, keys.shape[0], dim)
    out = functional.scaled_dot_product_attention(
        grouped,
        keys.transpose(0, 1)[:, None].expand(shape),
        values.transpose(0, 1)[:, None].expand(shape),
        attn_mask=view.mask,
        is_causal=view.causal,
        scale=scale,
    )  # (kv_heads, group, count, dim)
    return out.permute(2, 0, 1, 3).reshape(count, heads, dim)
