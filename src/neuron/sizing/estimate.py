"""What a model is going to take of a device, before anything is loaded. Pure; no torch.

Owns the arithmetic: weights as the engine keeps them, the KV cache that it is given, working
memory, and the engine's process itself; every term with a line for people. The figures of the last
two are measured (``python -m bench.memory``, docs/operating.md). Must not know where files lie or
what else the device holds.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from neuron.hardware import dtypes
from neuron.ipc.defaults import KERNELS_KEPT, STEP_TOKENS
from neuron.layers.paging import BLOCK_TOKENS, GROUP_TILES, TILE_BLOCKS, TILE_TOKENS, blocks_for
from neuron.models.checkpoint import TensorEntry, canonical, most_common_dtype
from neuron.models.config import ModelConfig
from protocol.fleet import DeviceKind
from protocol.runtime.sizes import size_text

TOKENS_OF_SLOT = 4096
"""KV cache that each sequence may count on, unless the context is shorter."""
LONG_CONTEXT = 32_768
"""A sequence that is alone may be so long."""
LEAST_CONTEXT = 4096
"""With room for less a model is not worth loading."""

PROCESS_BYTES: Mapping[DeviceKind, int] = MappingProxyType(
    {DeviceKind.CPU: 148 << 20, DeviceKind.CUDA: 512 << 20}
)
"""An engine without a model. On a CPU: Python, torch and the rest of what it imports. On a GPU: the
device's context and its libraries' workspaces; not measured yet."""
LIBRARY_BYTES = 34 << 20
"""On a CPU, what the first matrix products leave behind: buffers of MKL, oneDNN and the threads."""
KERNEL_BYTES = 576 << 10
"""A kernel that oneDNN has compiled for one shape of matrix and one number of rows."""
_LOGIT_COPIES = 5
"""Logits in slices and as a whole, weights of the tokens, and what the draw keeps of them."""

_BY_OUTPUTS = ("q_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head", "o_proj", "down_proj")
_BY_HEADS = ("k_proj", "v_proj")


class EstimateSettings(NamedTuple):
    """How the model shall be loaded."""

    kind: DeviceKind
    slots: int
    """Sequences that run at once."""
    dtype: str = "auto"
    max_context: int | None = None
    """Tokens of one sequence at most; None = the model's own limit."""
    kv_bytes: int | None = None
    """KV cache of each rank, as asked for; None = for the slots."""
    ranks: int = 1
    """Devices that share the model by tensor parallelism."""


class Term(NamedTuple):
    """A part of the sum."""

    what: str
    size: int
    why: str


class MemoryEstimate(NamedTuple):
    """Bytes of each rank's device."""

    weight_bytes: int
    kv_bytes: int
    """For the engine's ``Start.kv_cache_bytes``."""
    kv_tokens: int
    overhead_bytes: int
    """Working memory and the process."""
    least_bytes: int
    """The total with as little KV cache as makes sense: with less, it must not be loaded."""
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        """All together."""
        return self.weight_bytes + self.kv_bytes + self.overhead_bytes

    def lines(self) -> tuple[str, ...]:
        """The explanation, a line for each term."""
        return tuple(f"{term.what} {size_text(term.size)}: {term.why}" for term in self.terms)


def estimate(
    config: ModelConfig,
    entries: Iterable[TensorEntry],
    settings: EstimateSettings,
    *,
    available: int | None = None,
    measured_bytes: int | None = None,
) -> MemoryEstimate:
    """What *config* with the checkpoint's *entries* takes.

    Where *available* bytes are not enough, a KV cache that nobody has asked for shrinks, but not
    below :data:`LEAST_CONTEXT` tokens; then the total stays above *available*. *measured_bytes* is
    what it took at an earlier load of the same kind beside its KV cache (:func:`beside_kv`), and
    replaces what is computed. Raises :class:`LoadError` UNSUPPORTED for a dtype that is none.
    """
    entries = list(entries)
    cpu = settings.kind is DeviceKind.CPU
    stored = most_common_dtype(entries)
    dtype = dtypes.chosen(settings.dtype, config.dtype or stored, cpu=cpu)
    packed = cpu and dtypes.packs(dtype)
    weights = _weights(config, entries, settings.ranks, dtype, stored if packed else None)
    others = [
        *([_kernels()] if packed else []),
        _working(config, settings, dtype),
        Term("process", PROCESS_BYTES[settings.kind], "an engine without a model"),
    ]
    fixed = [weights, *others]
    if measured_bytes is not None:
        fixed = [Term("all but the KV cache", measured_bytes, "what it took when it was loaded")]
        weights = weights._replace(size=min(weights.size, measured_bytes))
    size = sum(term.size for term in fixed)
    each = -(-config.kv_heads // settings.ranks) * config.kv_bytes_per_token(1) // config.kv_heads
    block_bytes = each * dtypes.ITEM_BYTES[dtype] * BLOCK_TOKENS
    room = None if available is None else max(0, available - size) // block_bytes
    cache = _kv_cache(config, settings, block_bytes, room)
    return MemoryEstimate(
        weight_bytes=weights.size,
        kv_bytes=cache.blocks * block_bytes,
        kv_tokens=cache.blocks * BLOCK_TOKENS,
        overhead_bytes=size - weights.size,
        least_bytes=size + cache.least * block_bytes,
        terms=(fixed[0], Term("KV cache", cache.blocks * block_bytes, cache.why), *fixed[1:]),
    )


def beside_kv(private_bytes: int, kv_cache_bytes: int) -> int:
    """What a load really took beside its KV cache, for the next estimate's *measured_bytes*.

    *private_bytes* of the engine's process (``hardware.host.private_bytes``) is to be the most that
    was seen while it answered: an engine that has only just been loaded takes less. Keep the result
    for this revision of the model and these settings.
    """
    return max(0, private_bytes - kv_cache_bytes)


# -- weights ---------------------------------------------------------------------------------------


def _weights(
    config: ModelConfig,
    entries: list[TensorEntry],
    ranks: int,
    dtype: str,
    stored: str | None,
) -> Term:
    """*stored*: the dtype in which an engine with packed matrices keeps the embedding; None = they
    are not packed. The packed head is a matrix of its own, also where the checkpoint has none."""
    item = dtypes.ITEM_BYTES[dtype]
    size = numbers = left_out = 0
    table = 0
    for entry in entries:
        name = canonical(entry.name)
        if config.ignores(name):
            left_out += entry.elements
            continue
        share = _share(name, entry, config, ranks)
        numbers += share
        if name == "embed_tokens.weight":
            table = share
        else:
            size += share * item
    whole = "parameters" if ranks == 1 else f"parameters of each of {ranks} ranks"
    why = f"{_millions(numbers)} {whole} in {dtype}"
    if stored is None:
        size += table * item
    else:
        kept = dtypes.STORED[stored]
        size += table * dtypes.ITEM_BYTES[kept]
        if kept != dtype:
            why += f", {_millions(table)} of them as stored, in {kept}"
        if config.tied:
            size += table * item
            why += f"; {_millions(table)} once more, packed, as the head"
    if left_out:
        why += f"; {_millions(left_out)} of the files are not needed"
    return Term("weights", size, why)


def _share(name: str, entry: TensorEntry, config: ModelConfig, ranks: int) -> int:
    """Numbers of a tensor that one rank holds: its rows, columns or heads of a matrix."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if len(entry.shape) > 1 and module in _BY_OUTPUTS:
        return -(-entry.elements // ranks)
    if len(entry.shape) > 1 and module in _BY_HEADS:
        return entry.elements * -(-config.kv_heads // ranks) // config.kv_heads
    return entry.elements


# -- KV cache --------------------------------------------------------------------------------------


class _Cache(NamedTuple):
    blocks: int
    least: int
    why: str


def _kv_cache(
    config: ModelConfig, settings: EstimateSettings, block_bytes: int, room: int | None
) -> _Cache:
    """*room*: the blocks that fit."""
    context = min(config.context_limit, settings.max_context or config.context_limit)
    slots = settings.slots
    most = slots * blocks_for(context)
    each = size_text(block_bytes // BLOCK_TOKENS)
    if settings.kv_bytes is not None:
        blocks = min(most, settings.kv_bytes // block_bytes)
        why = f"{blocks * BLOCK_TOKENS:,} tokens of {each}: as asked for"
        return _Cache(blocks, blocks, why)
    long, of_slots = min(context, LONG_CONTEXT), slots * TOKENS_OF_SLOT
    wanted = blocks_for(min(slots * context, max(long, of_slots)))
    least = min(wanted, blocks_for(min(context, LEAST_CONTEXT)))
    blocks = wanted if room is None else max(least, min(wanted, room))
    if blocks < wanted:
        reason = f"what there is room for, of {wanted * BLOCK_TOKENS:,} wanted"
    elif slots * context <= max(long, of_slots):
        reason = f"{slots} slots × the whole context of {context:,}"
    elif of_slots >= long:
        reason = f"{slots} slots × {TOKENS_OF_SLOT:,}"
    else:
        reason = "one long context"
    return _Cache(blocks, least, f"{blocks * BLOCK_TOKENS:,} tokens of {each}: {reason}")


# -- what else the process takes -------------------------------------------------------------------


def _kernels() -> Term:
    return Term(
        "kernels",
        KERNELS_KEPT * KERNEL_BYTES + LIBRARY_BYTES,
        f"{KERNELS_KEPT} of {size_text(KERNEL_BYTES)}, compiled for a shape of matrix and a number "
        f"of rows each, and {size_text(LIBRARY_BYTES)} for their libraries",
    )


def _working(config: ModelConfig, settings: EstimateSettings, dtype: str) -> Term:
    """Most of it is what the MLP or the attention of one layer makes for all tokens of a step, and
    the logits of all slots; a CPU also holds partial results of attention, tile by tile."""
    item, ranks = dtypes.ITEM_BYTES[dtype], settings.ranks
    tokens = max(STEP_TOKENS[settings.kind], settings.slots)
    hidden, inner = config.hidden_size, -(-config.intermediate_size // ranks)
    heads, kv_heads = -(-config.heads // ranks), -(-config.kv_heads // ranks)
    q, kv = heads * config.head_dim, kv_heads * config.head_dim
    mlp = tokens * (4 * inner + 3 * hidden) * item
    attention = tokens * (4 * (q + kv) + 3 * hidden) * item
    behind = 0
    if settings.kind is DeviceKind.CPU:
        context = min(config.context_limit, settings.max_context or config.context_limit)
        tiles = min(GROUP_TILES, -(-context // TILE_TOKENS))
        attention += tiles * tokens * q * (2 * item + 8)  # as they come, joined, weighed, summed
        behind = (TILE_BLOCKS - 1) * BLOCK_TOKENS * kv * item
    logits = settings.slots * config.vocab_size * 4 * _LOGIT_COPIES
    return Term(
        "working memory",
        max(mlp, attention) + logits + behind,
        f"steps of {tokens:,} tokens ({size_text(max(mlp, attention))} in a layer), logits of "
        f"{settings.slots} × {config.vocab_size:,}",
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M"
