"""Estimates what a model will take of a device, before anything is loaded. Pure; no torch.

Owns the arithmetic: weights as the engine keeps them, the KV cache that it gets, working memory,
and the engine's process itself; every term has a line for people. The figures of the last two are
measured (``python -m bench.memory``, bench/results/memory-cpu.md). Must not know where files are or
what else is on the device.
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
"""KV cache tokens that each sequence can count on, unless its context is shorter."""
LONG_CONTEXT = 32_768
"""Tokens for which the cache has room when one sequence runs alone."""
LEAST_CONTEXT = 4096
"""Fewest tokens of KV cache with which a model is worth loading."""

PROCESS_BYTES: Mapping[DeviceKind, int] = MappingProxyType(
    {DeviceKind.CPU: 148 << 20, DeviceKind.CUDA: 512 << 20}
)
"""Memory of an engine without a model. On a CPU: Python, torch and its other imports. On a GPU: the
device's context and its libraries' workspaces; not measured yet."""
LIBRARY_BYTES = 34 << 20
"""On a CPU, what the first matrix products leave allocated: buffers of MKL, oneDNN and threads."""
KERNEL_BYTES = 576 << 10
"""One kernel, compiled by oneDNN for one matrix shape and one number of rows."""
_LOGIT_COPIES = 5
"""Logits in slices and whole, the tokens' weights, and what the draw keeps of them."""

_BY_OUTPUTS = ("q_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head", "o_proj", "down_proj")
_BY_HEADS = ("k_proj", "v_proj")


class EstimateSettings(NamedTuple):
    """The settings with which the model would be loaded."""

    kind: DeviceKind
    slots: int
    """Sequences that run at once."""
    dtype: str = "auto"
    max_context: int | None = None
    """Most tokens of one sequence; None = the model's own limit."""
    kv_bytes: int | None = None
    """KV cache of each rank as configured; None = sized for the slots."""
    ranks: int = 1
    """Devices that share the model by tensor parallelism."""


class Term(NamedTuple):
    """One part of the total."""

    what: str
    size: int
    why: str


class MemoryEstimate(NamedTuple):
    """Memory on each rank's device, in bytes."""

    weight_bytes: int
    kv_bytes: int
    """Becomes the engine's ``Start.kv_cache_bytes``."""
    kv_tokens: int
    overhead_bytes: int
    """Working memory and the engine's process."""
    least_bytes: int
    """The total with the smallest useful KV cache: with less, the model must not be loaded."""
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        """Weights, KV cache and overhead together."""
        return self.weight_bytes + self.kv_bytes + self.overhead_bytes

    def lines(self) -> tuple[str, ...]:
        """The explanation for people, one line per term."""
        return tuple(f"{term.what} {size_text(term.size)}: {term.why}" for term in self.terms)


def estimate(
    config: ModelConfig,
    entries: Iterable[TensorEntry],
    settings: EstimateSettings,
    *,
    available: int | None = None,
    measured_bytes: int | None = None,
) -> MemoryEstimate:
    """Estimates the memory of *config* with the checkpoint's *entries*.

    Where *available* bytes are not enough, a KV cache of unspecified size shrinks, but not below
    :data:`LEAST_CONTEXT` tokens; then the total exceeds *available*. *measured_bytes* is what the
    model took beside its KV cache at an earlier load of the same kind (:func:`beside_kv`); it
    replaces the computed figure. Raises :class:`LoadError` UNSUPPORTED for an unknown dtype.
    """
    entries = list(entries)
    cpu = settings.kind is DeviceKind.CPU
    stored = most_common_dtype(entries)
    dtype = dtypes.chosen(
        settings.dtype,
        config.dtype or stored,
        cpu=cpu,
        exceeds_float16=config.traits.exceeds_float16,
    )
    packed = cpu and dtypes.packs(dtype)
    weights = _weights(config, entries, settings.ranks, dtype, stored if packed else None)
    others = [
        *([_kernels()] if packed else []),
        _working(config, settings, dtype),
        Term("process", PROCESS_BYTES[settings.kind], "an engine without a model"),
    ]
    fixed = [weights, *others]
    if measured_bytes is not None:
        fixed = [Term("all but the KV cache", measured_bytes, "measured when it was last loaded")]
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


def beside_kv(written_bytes: int, kv_cache_bytes: int) -> int:
    """What a load really took beside its KV cache: *measured_bytes* of the next estimate.

    *written_bytes* is the engine process's memory (``hardware.host.written_bytes``), the highest
    figure seen while it generated: an engine that was only just loaded takes less. The result is
    valid for this revision of the model and these settings.
    """
    return max(0, written_bytes - kv_cache_bytes)


# -- weights ---------------------------------------------------------------------------------------


def _weights(
    config: ModelConfig,
    entries: list[TensorEntry],
    ranks: int,
    dtype: str,
    stored: str | None,
) -> Term:
    """The weights of one rank.

    *stored* is the dtype in which an engine with packed matrices keeps the embedding; None = it
    does not pack. A packed head is a separate matrix even where the checkpoint ties it to the
    embedding.
    """
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
            why += f", of which {_millions(table)} stay as stored, in {kept}"
        if config.tied:
            size += table * item
            why += f"; {_millions(table)} again, packed, for the head"
    if left_out:
        why += f"; {_millions(left_out)} in the files are not loaded"
    return Term("weights", size, why)


def _share(name: str, entry: TensorEntry, config: ModelConfig, ranks: int) -> int:
    """How many numbers of a tensor one rank holds: its rows, columns or heads of a matrix."""
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
    """Sizes the KV cache; *room* is the number of blocks that fit."""
    context = min(config.context_limit, settings.max_context or config.context_limit)
    slots = settings.slots
    most = slots * blocks_for(context)
    each = size_text(block_bytes // BLOCK_TOKENS)
    if settings.kv_bytes is not None:
        blocks = min(most, settings.kv_bytes // block_bytes)
        why = f"{blocks * BLOCK_TOKENS:,} tokens of {each}: as configured"
        return _Cache(blocks, blocks, why)
    long, of_slots = min(context, LONG_CONTEXT), slots * TOKENS_OF_SLOT
    wanted = blocks_for(min(slots * context, max(long, of_slots)))
    least = min(wanted, blocks_for(min(context, LEAST_CONTEXT)))
    blocks = wanted if room is None else max(least, min(wanted, room))
    if blocks < wanted:
        reason = f"all that fits, of {wanted * BLOCK_TOKENS:,} wanted"
    elif slots * context <= max(long, of_slots):
        reason = f"{slots} slots × the full context of {context:,}"
    elif of_slots >= long:
        reason = f"{slots} slots × {TOKENS_OF_SLOT:,}"
    else:
        reason = "one long context"
    return _Cache(blocks, least, f"{blocks * BLOCK_TOKENS:,} tokens of {each}: {reason}")


# -- the rest of the process -----------------------------------------------------------------------


def _kernels() -> Term:
    return Term(
        "kernels",
        KERNELS_KEPT * KERNEL_BYTES + LIBRARY_BYTES,
        f"{KERNELS_KEPT} of {size_text(KERNEL_BYTES)}, each compiled for one matrix shape and "
        f"number of rows, and {size_text(LIBRARY_BYTES)} for their libraries",
    )


def _working(config: ModelConfig, settings: EstimateSettings, dtype: str) -> Term:
    """Working memory of a step.

    Most of it is what one layer's MLP or attention makes for all tokens of a step, and the logits
    of all slots; a CPU also holds partial results of attention, tile by tile.
    """
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
        attention += tiles * tokens * q * (2 * item + 8)  # as computed, joined, weighted, summed
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
