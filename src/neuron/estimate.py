"""What a model is going to take of a device, from its headers alone. Pure; no torch.

Weights as the engine keeps them, KV cache for the slots it shall have, working memory, and the
engine's process itself. Every term has a line for people. Must not know where files lie.
"""

from collections.abc import Iterable
from typing import NamedTuple

from neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from neuron.host import computes_bfloat16
from neuron.models.checkpoint import TensorEntry
from neuron.models.config import ModelConfig
from neuron.models.errors import LoadCode, LoadError
from protocol.fleet import DeviceKind, Estimate

TOKENS_OF_SLOT = 4096
"""KV cache that each sequence may count on, unless the context is shorter."""
LONG_CONTEXT = 32_768
"""One sequence alone may be so long."""
LEAST_CONTEXT = 4096
"""With less KV cache a model is not worth loading."""

PROCESS_BYTES = {DeviceKind.CPU: 160 << 20, DeviceKind.CUDA: 600 << 20}

_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_WRAPPERS = ("model.language_model.", "language_model.model.", "language_model.", "model.")


class Settings(NamedTuple):
    """How it shall be loaded."""

    dtype: str
    """``auto`` or a name."""
    slots: int
    context: int | None
    """Tokens of one sequence at most; None = as the model says."""
    kv_bytes: int | None
    """None = for the slots."""


def estimate(
    config: ModelConfig,
    entries: Iterable[TensorEntry],
    kind: DeviceKind,
    settings: Settings,
    available: int | None = None,
) -> Estimate:
    """What it takes. Where *available* bytes are not enough, the KV cache shrinks, down to one
    context of :data:`LEAST_CONTEXT` tokens.

    Raises :class:`LoadError` UNSUPPORTED for a dtype that is none.
    """
    tensors = [entry for entry in entries if _is_used(config, entry)]
    stored = config.dtype or _stored(tensors)
    dtype = compute_dtype(settings.dtype, stored, kind)
    parts = [
        _weights(config, tensors, kind, dtype),
        _working(config, kind, dtype),
        _process(kind),
    ]
    fixed = sum(part.size for part in parts)
    kv = _kv_cache(config, dtype, settings, None if available is None else available - fixed)
    parts.insert(1, kv)
    weights, _, working, process = parts
    total = fixed + kv.size
    return Estimate(
        bytes_each=total,
        weight_bytes=weights.size,
        kv_bytes=kv.size,
        kv_tokens=kv.size // config.kv_bytes_per_token(_DTYPES[dtype]),
        overhead_bytes=working.size + process.size,
        lines=(*(f"{part.what} {size_text(part.size)}: {part.why}" for part in parts),),
    )


class _Part(NamedTuple):
    what: str
    size: int
    why: str


def compute_dtype(asked: str, stored: str, kind: DeviceKind) -> str:
    """The dtype that an engine here chooses (``neuron.engine.device.choose_dtype``)."""
    name = stored if asked == "auto" else asked
    if name not in _DTYPES:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"dtype {name!r} is not supported. Use auto, float32, bfloat16 or float16.",
        )
    if asked == "auto" and kind is DeviceKind.CPU:
        return name if name == "bfloat16" and computes_bfloat16() else "float32"
    return name


def _weights(
    config: ModelConfig, tensors: list[TensorEntry], kind: DeviceKind, dtype: str
) -> _Part:
    """On a CPU the embedding stays as it is stored, and the head has a layout of its own."""
    item = _DTYPES[dtype]
    numbers = sum(entry.elements for entry in tensors)
    size = numbers * item
    why = f"{numbers / 1e6:,.0f} M numbers of {item} bytes ({dtype})"
    if kind is DeviceKind.CPU:
        table = next((e for e in tensors if _canonical(e.name) == "embed_tokens.weight"), None)
        if table is not None:
            size += table.nbytes - table.elements * item
            if config.tied:
                size += table.elements * item
                why += ", and the embedding once more, as the head"
    return _Part("weights", size, why)


def _kv_cache(config: ModelConfig, dtype: str, settings: Settings, room: int | None) -> _Part:
    each = config.kv_bytes_per_token(_DTYPES[dtype])
    context = min(config.context_limit, settings.context or config.context_limit)
    if settings.kv_bytes is not None:
        tokens, why = settings.kv_bytes // each, "as asked for"
    else:
        long, all_slots = min(context, LONG_CONTEXT), settings.slots * TOKENS_OF_SLOT
        tokens = min(settings.slots * context, max(long, all_slots))
        why = f"{settings.slots} slots" if tokens > long else "one long context"
        least = min(context, LEAST_CONTEXT)
        if room is not None and tokens * each > room:
            tokens = max(least, room // each)
            why = "what there is room for"
    blocks = max(1, blocks_for(tokens)) if room is None else max(1, tokens // BLOCK_TOKENS)
    size = blocks * BLOCK_TOKENS * each
    return _Part(
        "KV cache",
        size,
        f"{blocks * BLOCK_TOKENS:,} tokens of {each / 1024:.0f} KiB, {why}",
    )


def _working(config: ModelConfig, kind: DeviceKind, dtype: str) -> _Part:
    return _Part("working memory", 160 << 20, "activations and what a load leaves")


def _process(kind: DeviceKind) -> _Part:
    return _Part("process", PROCESS_BYTES[kind], "Python, torch and its kernels")


def _is_used(config: ModelConfig, entry: TensorEntry) -> bool:
    if config.tied and _canonical(entry.name) == "lm_head.weight":
        return False
    return not entry.name.startswith(config.left_out)


def _stored(tensors: list[TensorEntry]) -> str:
    """The dtype that holds most bytes."""
    totals: dict[str, int] = {}
    for entry in tensors:
        totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.nbytes
    return _STORED[max(totals, key=totals.__getitem__, default="F32")]


def _canonical(name: str) -> str:
    """Without the modules around the text model (``neuron.models.weights.canonical``)."""
    for prefix in _WRAPPERS:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def size_text(count: int) -> str:
    """A size for people: MiB below one GiB."""
    return f"{count / 2**30:.1f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.0f} MiB"
