"""Attention over a paged KV cache: the plain-torch path, which runs on every device.

Owns the cache's layout and the per-sequence computation: the pages of one sequence are gathered
(or viewed, when they are consecutive) and handed to scaled_dot_product_attention, one sequence at
a time, so that nobody's result depends on who else is in the batch. Faster kernels will take the
same :class:`AttentionInput`. Must not know sequences, scheduling or architectures.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

BLOCK_TOKENS = 16
"""Tokens of one KV block, on every device."""


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """The tokens of one sequence in a step."""

    start: int
    """Where its tokens begin in the flat batch."""
    count: int
    context: int
    """Tokens of it that the cache already holds."""
    first_block: int | None
    """Set when its blocks are consecutive: they are viewed, not gathered."""
    blocks: torch.Tensor | None
    """Otherwise its block table, int64 ``[blocks]``."""


class KVCache:
    """Keys and values of all layers, ``[blocks, 16, kv_heads, head_dim]`` each."""

    def __init__(
        self,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, 2, blocks, BLOCK_TOKENS, kv_heads, head_dim)
        # Not zeroed: the memory is committed page by page as sequences use it.
        self._pages = torch.empty(shape, dtype=dtype, device=device)
        self._layers = [(layer[0], layer[1]) for layer in self._pages]
        self.blocks = blocks

    @property
    def nbytes(self) -> int:
        return self._pages.nbytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer."""
        return self._layers[index]


@dataclass(frozen=True, slots=True)
class _RowView:
    """What one row attends to in layers with one window; made once a step for all of them."""

    row: AttentionRow
    begin: int
    """The first position that any of its tokens can see."""
    mask: torch.Tensor | None
    causal: bool


class AttentionInput:
    """Everything that attention layers need to know about a step."""

    def __init__(
        self,
        rows: list[AttentionRow],
        slots: torch.Tensor,
        windows: set[int | None],
        dtype: torch.dtype,
    ) -> None:
        self.slots = slots  # (tokens): block * 16 + offset of each new token
        self.views = {
            window: [_view(row, window, slots, dtype) for row in rows] for window in windows
        }


def _view(
    row: AttentionRow, window: int | None, like: torch.Tensor, dtype: torch.dtype
) -> _RowView:
    length = row.context + row.count
    begin = 0 if window is None else max(0, row.context - window + 1)
    if row.count == 1:
        return _RowView(row, begin, None, causal=False)
    narrow = window is not None and length > window
    if row.context == 0 and not narrow:
        return _RowView(row, begin, None, causal=True)
    queries = torch.arange(row.context, length, device=like.device)[:, None]
    keys = torch.arange(begin, length, device=like.device)[None]
    hidden = keys > queries
    if narrow:
        assert window is not None
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=like.device)  # (count, keys)
    return _RowView(row, begin, mask.masked_fill_(hidden, -torch.inf), causal=False)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    step: AttentionInput,
    window: int | None,
) -> torch.Tensor:
    """Writes the new keys and values into the cache, then attends row by row.

    *query* ``[tokens, heads, head_dim]``; *key*, *value* ``[tokens, kv_heads, head_dim]``; the
    result has the query's shape.
    """
    keys, values = cache
    keys.view(-1, *key.shape[1:]).index_copy_(0, step.slots, key)
    values.view(-1, *value.shape[1:]).index_copy_(0, step.slots, value)
    outs = [
        _attend_row(
            query[view.row.start : view.row.start + view.row.count],
            _pages(keys, view),
            _pages(values, view),
            view,
        )
        for view in step.views[window]
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _pages(pages: torch.Tensor, view: _RowView) -> torch.Tensor:
    """The cached tokens from ``view.begin`` on: ``[length, kv_heads, head_dim]``."""
    row = view.row
    end = row.context + row.count
    if row.blocks is None:
        assert row.first_block is not None
        flat = pages.flatten(0, 1)
        base = row.first_block * BLOCK_TOKENS
        return flat[base + view.begin : base + end]
    first, last = view.begin // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)
    flat = pages.index_select(0, row.blocks[first:last]).flatten(0, 1)
    return flat[view.begin - first * BLOCK_TOKENS : end - first * BLOCK_TOKENS]


def _attend_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: _RowView
) -> torch.Tensor:
    count, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if count == 1:
        # The heads that share a key head become its queries: one pass over the cache.
        folded = query.reshape(1, kv_heads, group, dim)
        k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        out = functional.scaled_dot_product_attention(folded, k, v)  # (1, kv_heads, group, dim)
        return out.reshape(1, heads, dim)
    # Key heads as the batch, their group as heads; expanding copies nothing.
    grouped = query.reshape(count, kv_heads, group, dim).permute(1, 2, 0, 3)
    length = keys.shape[0]
    k = keys.transpose(0, 1)[:, None].expand(kv_heads, group, length, dim)
    v = values.transpose(0, 1)[:, None].expand(kv_heads, group, length, dim)
    out = functional.scaled_dot_product_attention(
        grouped, k, v, attn_mask=view.mask, is_causal=view.causal
    )  # (kv_heads, group, count, dim)
    return out.permute(2, 0, 1, 3).reshape(count, heads, dim)
