"""How much memory there is, and how much of it the KV cache gets.

Owns the arithmetic and its explanation; the numbers of CUDA devices come from torch, those of the
host from ``neuron.hardware.host``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from neuron.hardware.host import Host
from neuron.layers.paging import BLOCK_TOKENS, blocks_for
from neuron.models.errors import LoadCode, LoadError
from protocol.runtime.sizes import size_text

CPU_SHARE = 0.5
"""Of the memory that is free after the weights are loaded, what the KV cache may take."""
CUDA_SHARE = 0.85
"""The rest is for activations, which torch allocates as it goes."""
MIN_BLOCKS = 4
"""Less is no use to anybody."""
WORKING_BYTES = 64 << 20
"""Memory for activations that must be free beside the weights for a load to make sense."""

MUCH_LESS = 0.9
"""Of a group's devices, free memory that differs by more is worth a word."""


@dataclass(frozen=True, slots=True)
class KVBudget:
    """The size of a KV cache."""

    blocks: int
    context_limit: int
    """Tokens of one sequence: the model's limit, or what the cache can hold of it."""
    why: str
    """Where the size comes from, for people."""


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on *device* now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return Host().memory_free_bytes()


def check_weights_fit(weight_bytes: int, free: int, device: str) -> None:
    """Raises :class:`LoadError` OUT_OF_MEMORY before anything is read if weights cannot fit."""
    need = weight_bytes + WORKING_BYTES
    if need > free:
        raise LoadError(
            LoadCode.OUT_OF_MEMORY,
            f"The model needs {size_text(need)} on {device} (weights "
            f"{size_text(weight_bytes)}, working memory {size_text(WORKING_BYTES)}) but "
            f"{size_text(free)} are free. Unload another model, or use a smaller one.",
        )


def unevenness(devices: Sequence[str], free: Sequence[int]) -> tuple[str, ...]:
    """A note for whoever owns the *devices* of a model, one for each rank, if their *free* bytes
    differ much: what the larger ones have beyond the smallest is of no use to it."""
    least, most = min(free), max(free)
    if len(set(devices)) < 2 or least > MUCH_LESS * most:
        return ()
    sizes = ", ".join(
        f"{device} {size_text(size)}" for device, size in zip(devices, free, strict=True)
    )
    smallest = devices[free.index(least)]
    return (
        f"free memory is uneven ({sizes} after the weights): the KV cache is no larger than "
        f"{smallest} can hold",
    )


def kv_budget(
    *,
    free: int,
    bytes_per_token: int,
    context_limit: int,
    max_running: int,
    asked_bytes: int | None,
    share: float,
) -> KVBudget:
    """Sizes the KV cache: *asked_bytes* or *share* of *free*, at most *max_running* full contexts.

    If less than one full context fits, the context limit shrinks to what does. Raises
    :class:`LoadError` OUT_OF_MEMORY if fewer than :data:`MIN_BLOCKS` blocks fit.
    """
    block_bytes = bytes_per_token * BLOCK_TOKENS
    wanted = blocks_for(context_limit) * max_running
    allowed = int(free * share) if asked_bytes is None else asked_bytes
    blocks = min(wanted, allowed // block_bytes)
    possible = max(0, free) // block_bytes
    if blocks < min(MIN_BLOCKS, wanted) or blocks > possible:
        source = f"{share:.0%} of the free memory" if asked_bytes is None else "kv_cache_bytes"
        raise LoadError(
            LoadCode.OUT_OF_MEMORY,
            f"The KV cache does not fit: one block of {BLOCK_TOKENS} tokens takes {block_bytes} "
            f"bytes and at least {MIN_BLOCKS} are needed; allowed are "
            f"{size_text(allowed)} ({source}), {size_text(free)} are free after the "
            "weights. Unload another model, or change kv_cache_bytes.",
        )
    tokens = blocks * BLOCK_TOKENS
    source = f"{share:.0%} of {size_text(free)} free" if asked_bytes is None else "kv_cache_bytes"
    enough = f"all that {max_running} contexts of {context_limit} tokens need"
    why = (
        f"{size_text(blocks * block_bytes)} for {tokens} tokens of {size_text(bytes_per_token)}: "
        f"{enough if blocks == wanted else source}"
    )
    return KVBudget(blocks, min(context_limit, tokens), why)
