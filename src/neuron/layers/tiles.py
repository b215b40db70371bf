"""Attention on a CPU: reads the KV cache in place, tile by tile.

A sequence's keys are divided into tiles of 256 tokens at fixed positions. Each tile is one problem
of fixed shape for torch's fused CPU kernel, which also returns the log-sum-exp of its scores; with
it the partial results are merged (Dao et al., arXiv 2205.14135, section 3.1; Milakov & Gimelshein,
arXiv 1805.02867). Tiles that are contiguous in memory are one call; a tile whose blocks are
scattered is first copied into one piece.

**Exact to the bit.** With ``exact``, a token's result does not depend on what else the step
computes or on how the sequence was divided into steps, because the kernel never sees a different
problem:

- a tile always has all of its keys; those that a query must not see get the score :data:`HIDDEN`,
  whose weight is exactly zero;
- the size of the first tile depends only on the query's own position: queries among the first 64 or
  128 positions get a smaller one;
- queries come in multiples of :data:`ROWS`, because matrix products round differently below that;
- tiles are merged in order of position, group by group (``GROUP_TILES``) at fixed positions, with
  running sums whose order does not depend on how many there are. A hidden tile adds exact zeros.

A probe at load checks that the kernel's own rounding depends on nothing else
(``engine/machine/kernel_probe.py``). Without ``exact``, all contiguous tokens are one problem,
which is faster for short contexts but depends on how the cache's blocks were allocated.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from neuron.layers.attention import AttentionRow, AttentionStep, Pages, Window
from neuron.layers.paging import BLOCK_TOKENS, GROUP_TILES, TILE_BLOCKS, TILE_TOKENS

ROWS = 4
"""The number of queries in a problem is a multiple of this."""
SHORT_TOKENS = (64, 128)
"""Sizes of the only tile for queries before these positions."""
HIDDEN = -1e9
"""The score of a key that must not be seen: finite, so that a hidden tile does not become NaN."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True, slots=True)
class _KeyRange:
    """Keys of a row that one call of the kernel reads."""

    tiles: int
    tokens: int
    """Tokens of each tile."""
    slot: int
    """Cache slot of the first key; unused if the blocks are scattered."""
    blocks: torch.Tensor | None
    """The scattered blocks that hold the keys, int64; keys beyond the range are ignored."""
    mask: torch.Tensor | None
    """Added to the scores: ``[tiles, 1, queries, tokens]``."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive positions whose blocks are contiguous in memory (or one scattered tile)."""

    begin: int
    """The first position, a multiple of the tile size."""
    tiles: int
    block: int
    scattered: bool = False


class TiledStep(AttentionStep):
    """One step of CPU attention."""

    def __init__(
        self,
        rows: list[AttentionRow],
        slots: torch.Tensor,
        windows: Collection[Window],
        dtype: torch.dtype,
        *,
        group: int,
        exact: bool,
    ) -> None:
        """*group* is the number of query heads that share a key head."""
        if exact:
            rows = [part for row in rows for part in _by_size(row)]
        super().__init__(rows, slots)
        self._group = group
        hidden = max(HIDDEN, torch.finfo(dtype).min)
        self._plans = {
            window: [
                list(_groups(row, window, _Masks(row, window, group, dtype, hidden), exact=exact))
                for row in rows
            ]
            for window in windows
        }
        self._singles = 0  # number of one-token rows, which come first
        while self._singles < len(rows) and rows[self._singles].count == 1:
            self._singles += 1

    def attend(
        self, query: torch.Tensor, pages: Pages, window: Window, scale: float
    ) -> torch.Tensor:
        tokens, heads, dim = query.shape
        grouped = query.view(tokens, -1, self._group, dim)  # (tokens, kv_heads, group, dim)
        slots = pages[0].flatten(0, 1), pages[1].flatten(0, 1)  # (slots, kv_heads, dim) each
        plans = self._plans[window]
        outs = []
        if self._singles:
            padded = _pad(grouped[: self._singles])  # (singles, kv_heads, queries, dim)
            parts = [
                _attend_row(padded[i], slots, plan, scale)
                for i, plan in enumerate(plans[: self._singles])
            ]
            out = parts[0][None] if len(parts) == 1 else torch.stack(parts)
            outs.append(out[:, :, : self._group])
        for row, plan in zip(self.rows[self._singles :], plans[self._singles :], strict=True):
            own = grouped[row.start : row.start + row.count].transpose(0, 1)
            flat = _pad(own.reshape(own.shape[0], -1, dim))  # (kv_heads, queries, dim)
            out = _attend_row(flat, slots, plan, scale)[:, : row.count * self._group]
            outs.append(out.reshape(-1, row.count, self._group, dim).transpose(0, 1))
        whole = outs[0] if len(outs) == 1 else torch.cat(outs)
        return whole.reshape(tokens, heads, dim)


class _Masks:
    """The masks of one row: which query may see which keys."""

    def __init__(
        self, row: AttentionRow, window: Window, group: int, dtype: torch.dtype, hidden: float
    ) -> None:
        self._row, self._window, self._dtype, self._hidden = row, window, dtype, hidden
        positions = torch.arange(row.context, row.length).repeat_interleave(group)
        self._missing = -len(positions) % ROWS
        if self._missing:
            positions = functional.pad(positions, (0, self._missing), value=row.length - 1)
        self._positions = positions[:, None]  # (queries, 1)

    @property
    def queries(self) -> int:
        return self._positions.shape[0]

    def partial(self, begin: int, end: int) -> bool:
        """Whether some query must not see some key of ``begin … end``."""
        if end > self._row.context + 1:
            return True
        return self._window is not None and begin <= self._row.length - 1 - self._window

    def make(self, begin: int, tiles: int, tokens: int) -> torch.Tensor:
        """Makes the mask ``[tiles, 1, queries, tokens]`` for the keys from *begin* on."""
        keys = torch.arange(begin, begin + tiles * tokens)[None]
        hidden = keys > self._positions
        if self._window is not None:
            hidden |= keys <= self._positions - self._window
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, self._hidden)
        return mask.view(-1, tiles, tokens).transpose(0, 1).unsqueeze(1).contiguous()


def _short(row: AttentionRow) -> int | None:
    """The size of a row's only tile, if that is a small one."""
    return next((tokens for tokens in SHORT_TOKENS if row.length <= tokens), None)


def _by_size(row: AttentionRow) -> Iterator[AttentionRow]:
    """Divides *row* into parts whose queries have a first tile of the same size."""
    inside = (tokens for tokens in SHORT_TOKENS if row.context < tokens < row.length)
    for begin, end in itertools.pairwise((row.context, *inside, row.length)):
        yield AttentionRow(row.start + begin - row.context, end - begin, begin, row.blocks)


def _groups(
    row: AttentionRow, window: Window, masks: _Masks, *, exact: bool
) -> Iterator[list[_KeyRange]]:
    """A row's key ranges in order of position, grouped by what is merged together."""
    begin = 0 if window is None else max(0, row.context - window + 1)
    first, end = begin // TILE_TOKENS, -(-row.length // TILE_TOKENS)
    if not exact:
        runs = _runs(row.blocks, first, end)
        yield list(itertools.chain.from_iterable(_loose(run, row, masks) for run in runs))
        return
    while first < end:
        last = min(end, (first // GROUP_TILES + 1) * GROUP_TILES)
        runs = _runs(row.blocks, first, last)
        yield list(itertools.chain.from_iterable(_pieces(run, row, masks) for run in runs))
        first = last


def _runs(blocks: list[int], first: int, end: int) -> Iterator[_Run]:
    """Joins the tiles ``first … end`` of a block table into as few runs as possible."""
    start, count = first, 0
    for tile in range(first, end):
        own = blocks[tile * TILE_BLOCKS : (tile + 1) * TILE_BLOCKS]
        together = own[-1] - own[0] == len(own) - 1 and own == list(
            range(own[0], own[0] + len(own))
        )
        follows = count and own[0] == blocks[(tile - 1) * TILE_BLOCKS] + TILE_BLOCKS
        if count and not (together and follows):
            yield _Run(start * TILE_TOKENS, count, blocks[start * TILE_BLOCKS])
            count = 0
        if not together:
            yield _Run(tile * TILE_TOKENS, 1, own[0], scattered=True)
        else:
            start, count = (start if count else tile), count + 1
    if count:
        yield _Run(start * TILE_TOKENS, count, blocks[start * TILE_BLOCKS])


def _pieces(run: _Run, row: AttentionRow, masks: _Masks) -> Iterator[_KeyRange]:
    """An exact run: whole tiles; those that need a mask are separate unless masks are small."""
    blocks = _table(row, run) if run.scattered else None
    slot = run.block * BLOCK_TOKENS
    short = _short(row)
    if short is not None:
        yield _KeyRange(1, short, slot, blocks, masks.make(0, 1, short))
        return
    end = run.begin + run.tiles * TILE_TOKENS
    for at, tiles, needs in _alike(range(run.begin, end, TILE_TOKENS), masks):
        mask = masks.make(at, tiles, TILE_TOKENS) if needs else None
        yield _KeyRange(tiles, TILE_TOKENS, slot + at - run.begin, blocks, mask)


def _alike(begins: range, masks: _Masks) -> Iterator[tuple[int, int, bool]]:
    """Joins the tiles at *begins* into few runs: (begin, tiles, whether a mask is needed)."""
    needs = [masks.partial(begin, begin + begins.step) for begin in begins]
    if any(needs) and masks.queries <= 4 * ROWS:
        needs = [True] * len(needs)
    done = 0
    for need, group in itertools.groupby(needs):
        count = len(list(group))
        yield begins[done], count, need
        done += count


def _loose(run: _Run, row: AttentionRow, masks: _Masks) -> Iterator[_KeyRange]:
    """A run without ``exact``: only existing keys; those that all queries see are separate."""
    end = min(run.begin + run.tiles * TILE_TOKENS, row.length)
    blocks = _table(row, run) if run.scattered else None
    seen = row.context + 1
    cuts = [run.begin, seen, end] if blocks is None and run.begin < seen < end else [run.begin, end]
    for start, stop in itertools.pairwise(cuts):
        mask = masks.make(start, 1, stop - start) if masks.partial(start, stop) else None
        slot = run.block * BLOCK_TOKENS + start - run.begin
        yield _KeyRange(1, stop - start, slot, blocks, mask)


def _table(row: AttentionRow, run: _Run) -> torch.Tensor:
    """The blocks of a scattered tile, filled up beyond the sequence with an arbitrary block."""
    first = run.begin // BLOCK_TOKENS
    own = row.blocks[first : first + TILE_BLOCKS]
    return torch.tensor(own + [own[0]] * (TILE_BLOCKS - len(own)))


def _pad(queries: torch.Tensor) -> torch.Tensor:
    """Pads ``[..., queries, dim]`` with zero queries to the next multiple of :data:`ROWS`."""
    missing = -queries.shape[-2] % ROWS
    return functional.pad(queries, (0, 0, 0, missing)) if missing else queries


def _attend_row(
    queries: torch.Tensor,
    slots: Pages,
    groups: list[list[_KeyRange]],
    scale: float,
) -> torch.Tensor:
    """One row: *queries* ``[kv_heads, queries, dim]`` over *slots* ``[slots, kv_heads, dim]``."""
    out, top = _attend_group(queries, slots, groups[0], scale)
    for pieces in groups[1:]:
        more, other = _attend_group(queries, slots, pieces, scale)
        highest = torch.maximum(top, other)
        mine, theirs = (top - highest).exp_(), (other - highest).exp_()
        weight = mine + theirs
        out = (out * mine[..., None] + more * theirs[..., None]) / weight[..., None]
        top = highest + weight.log_()
    return out.to(queries.dtype)


def _attend_group(
    queries: torch.Tensor,
    slots: Pages,
    pieces: list[_KeyRange],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result over some keys, and the log-sum-exp of their scores ``[kv_heads, queries]``."""
    results = [_attend_piece(queries, slots, piece, scale) for piece in pieces]
    if len(results) == 1 and pieces[0].tiles == 1:
        out, lse = results[0]
        return out[0], lse[0]
    outs = torch.cat([out for out, _ in results])  # (tiles, kv_heads, queries, dim)
    lses = torch.cat([lse for _, lse in results])  # (tiles, kv_heads, queries)
    top = lses.amax(0)
    weights = (lses - top).exp_()
    # cumsum adds one term after the other, so the sum does not depend on how many zeros follow.
    total = weights.cumsum(0)[-1]
    out = (outs * weights[..., None]).cumsum(0)[-1] / total[..., None]
    return out, top + total.log()


def _attend_piece(
    queries: torch.Tensor,
    slots: Pages,
    piece: _KeyRange,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = (_read(part, piece) for part in slots)  # (tiles, kv_heads, tokens, dim)
    many = queries.expand(piece.tiles, *queries.shape)
    out, lse = _flash(many, keys, values, attn_mask=piece.mask, scale=scale)
    return out, lse


def _read(slots: torch.Tensor, piece: _KeyRange) -> torch.Tensor:
    shape = slots.shape[1:]
    if piece.blocks is None:
        flat = slots[piece.slot : piece.slot + piece.tiles * piece.tokens]
    else:
        blocks = slots.view(-1, BLOCK_TOKENS, *shape).index_select(0, piece.blocks)
        flat = blocks.view(-1, *shape)[: piece.tiles * piece.tokens]
    return flat.view(piece.tiles, piece.tokens, *shape).transpose(1, 2)
