"""How much memory is free, and how much of it the KV cache gets.

Owns the arithmetic and its explanation. The figures of CUDA devices come from torch, those of the
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
"""Share of the memory left after loading the weights that the KV cache may take."""
CUDA_SHARE = 0.85
"""The same on a GPU; the rest is for activations, which torch allocates as needed."""
MIN_BLOCKS = 4
"""Smallest KV cache, in blocks; less is of no use."""
WORKING_BYTES = 64 << 20
"""Memory for activations that must be free beside the weights for a load to make sense."""

MUCH_LESS = 0.9
"""Ratio of the least to the most free memory below which a note warns about uneven devices."""


@dataclass(frozen=True, slots=True)
class KVBudget:
    """The size of a KV cache, and why."""

    blocks: int
    context_limit: int
    """Most tokens of one sequence: the model's limit, or less if the cache holds less."""
    why: str
    """How the size was determined, for people."""


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on *device* now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return Host().memory_free_bytes()


def check_weights_fit(weight_bytes: int, free: int, device: str) -> None:
    """Raises :class:`LoadError` OUT_OF_MEMORY, before any read, if the weights cannot fit."""
    need = weight_bytes + WORKING_BYTES
    if need > free:
        raise LoadError(
            LoadCode.OUT_OF_MEMORY,
            f"The model needs {size_text(need)} on {device} (weights "
            f"{size_text(weight_bytes)}, working memory {size_text(WORKING_BYTES)}), but only "
            f"{size_text(free)} are free. Unload another model, or use a smaller one.",
        )


def unevenness(devices: Sequence[str], free: Sequence[int]) -> tuple[str, ...]:
    """A note for the operator if the *free* bytes of the ranks' *devices* differ much.

    The model cannot use what the larger devices have beyond the smallest.
    """
    least, most = min(free), max(free)
    if len(set(devices)) < 2 or least > MUCH_LESS * most:
        return ()
    sizes = ", ".join(
        f"{device} {size_text(size)}" for device, size in zip(devices, free, strict=True)
    )
    smallest = devices[free.index(least)]
    return (
        f"free memory is uneven ({sizes} after the weights): the KV cache is limited to what "
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

    If less than one full context fits, the context limit shrinks accordingly. Raises
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
            f"bytes and at least {MIN_BLOCKS} are needed, but {size_text(allowed)} are allowed "
            f"({source}) and {size_text(free)} are free after the weights. Unload another "
            "model, or change kv_cache_bytes.",
        )
    tokens = blocks * BLOCK_TOKENS
    source = f"{share:.0%} of {size_text(free)} free" if asked_bytes is None else "kv_cache_bytes"
    enough = f"enough for {max_running} contexts of {context_limit} tokens"
    why = (
        f"{size_text(blocks * block_bytes)} for {tokens} tokens of {size_text(bytes_per_token)}: "
        f"{enough if blocks == wanted else source}"
    )
    return KVBudget(blocks, min(context_limit, tokens), why)
