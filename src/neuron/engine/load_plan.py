"""What a load is going to do, decided from its Start, the config and the checkpoint's headers.

Owns every choice and refusal that needs neither the device nor the other ranks: dtypes, the share
of a rank, which tensors are read, bytes and bounds. Pure, without torch; ``loader.py`` carries it
out. All ranks plan from the same files, so their plans differ in the rank and its device only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from neuron.engine.scheduler import SchedulerLimits
from neuron.hardware import dtypes
from neuron.ipc.defaults import CHUNK_TOKENS, STEP_TOKENS
from neuron.ipc.messages import Findings, Start
from neuron.layers.share import even_share, kv_share
from neuron.models.checkpoint import TensorEntry, most_common_dtype
from neuron.models.config import ModelConfig
from neuron.models.errors import LoadCode, LoadError
from neuron.models.matching import match_tensors
from neuron.models.parameters import EMBEDDING, Parameter, linear_shapes, parameters
from neuron.models.sharding import check_ranks


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where one rank computes, and among how many."""

    device: str
    """Name of its device: ``cpu`` or ``cuda:N``."""
    devices: tuple[str, ...]
    """Names of all ranks' devices; empty for a model that is not spread."""
    rank: int
    ranks: int

    @property
    def kind(self) -> str:
        """Kind of the device: ``cpu`` or ``cuda``."""
        return self.device.partition(":")[0]

    @property
    def sharing(self) -> int:
        """Number of ranks that take from one memory."""
        return self.ranks if self.kind == "cpu" else 1


@dataclass(frozen=True, slots=True)
class PlannedDtypes:
    """Dtypes of a model, as ``float32``, ``bfloat16`` or ``float16``."""

    computed: str
    """Dtype to compute in."""
    stored: str
    """Dtype that holds most bytes of the checkpoint. The embedding stays in it where matrices are
    packed: the head is kept in another layout anyway."""


@dataclass(frozen=True, slots=True)
class KernelWishes:
    """What is asked of the kernels; a probe on the device says which of it can be had."""

    exact: bool | None
    """Whether logits must not depend on the batch, to the bit; None: where the device can."""
    reference: bool
    """Whether to compute in plain torch, whatever the device."""
    threads: int | None
    """Compute threads of this rank; None: as many as its cores and the weights suggest."""
    linear_shapes: tuple[tuple[int, int], ...]
    """Shapes (rows, inputs) of the rank's linear maps, to probe the kernels with."""
    known: Mapping[str, Findings]
    """What such probes have found before, on this machine or another."""


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of a rank's finished weights, by the kernel of its linear maps."""

    plain: int
    packed: int
    """With packed matrices the head is a matrix of its own, also where the checkpoint has none."""

    def resident(self, *, packed: bool) -> int:
        """Bytes that the weights take with, or without, *packed* matrices."""
        return self.packed if packed else self.plain


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What the KV cache of a rank is sized by, once free memory is known."""

    kv_heads: int
    """Key/value heads of this rank."""
    bytes_per_token: int
    """Bytes over all layers, on this rank."""
    context_limit: int
    """Tokens that one sequence may have if the cache is large enough."""
    asked_bytes: int | None
    """Size that was asked for; None: a share of the free memory."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One rank's part in a load."""

    config: ModelConfig
    place: RankPlace
    dtypes: PlannedDtypes
    kernels: KernelWishes
    tensors: Mapping[str, TensorEntry]
    """Where each tensor lies that the model reads, by ``checkpoint.canonical`` name."""
    weights: WeightBytes
    cache: CachePlan
    limits: SchedulerLimits


def check_start(start: Start) -> None:
    """Refuses settings that no model can be served with, by name; before any file is looked at.

    Raises :class:`LoadError` UNSUPPORTED.
    """
    least = {
        "max_running": (start.max_running, 1),
        "max_queued": (start.max_queued, 0),
        "max_step_tokens": (start.max_step_tokens, 1),
        "max_context": (start.max_context, 2),
        "kv_cache_bytes": (start.kv_cache_bytes, 1),
        "threads": (start.threads, 1),
    }
    for name, (value, minimum) in least.items():
        if value is not None and value < minimum:
            raise LoadError(
                LoadCode.UNSUPPORTED,
                f"The engine cannot start with {name} = {value}: it must be at least {minimum}.",
            )


def plan_load(
    start: Start, config: ModelConfig, entries: Collection[TensorEntry], rank: int = 0
) -> LoadPlan:
    """Plans what *rank* does, where *entries* are the tensors of the whole checkpoint and *start*
    has passed :func:`check_start`.

    Raises :class:`LoadError`: UNSUPPORTED for a dtype that there is not and for a model that cannot
    be spread over the devices, CORRUPT for tensors that do not belong to *config*.
    """
    stored = most_common_dtype(entries)
    place = RankPlace(start.device, start.devices, rank, len(start.devices) or 1)
    computed = dtypes.chosen(
        start.dtype,
        config.dtype or stored,
        cpu=place.kind == "cpu",
        exceeds_float16=config.traits.exceeds_float16,
    )
    check_ranks(config, place.ranks)
    wanted = parameters(config, rank, place.ranks)
    shapes = {name: parameter.shape for name, parameter in wanted.items()}
    tensors = match_tensors(entries, shapes, config.ignores)
    chosen = PlannedDtypes(computed, dtypes.STORED[stored])
    return LoadPlan(
        config,
        place,
        chosen,
        _kernel_wishes(start, config, place),
        tensors,
        _weight_bytes(config, wanted, chosen),
        _cache(start, config, place, dtypes.ITEM_BYTES[computed]),
        _limits(start, config, place, wanted),
    )


def _kernel_wishes(start: Start, config: ModelConfig, place: RankPlace) -> KernelWishes:
    threads = max(1, start.threads // place.ranks) if start.threads else None
    shapes = linear_shapes(config, place.rank, place.ranks)
    return KernelWishes(start.exact, start.reference, threads, tuple(shapes), start.findings)


def _weight_bytes(
    config: ModelConfig, wanted: Mapping[str, Parameter], chosen: PlannedDtypes
) -> WeightBytes:
    item, stored = dtypes.ITEM_BYTES[chosen.computed], dtypes.ITEM_BYTES[chosen.stored]
    numbers, table = sum(each.elements for each in wanted.values()), wanted[EMBEDDING].elements
    head = table if config.tied else 0  # packed, it is not the embedding any more
    return WeightBytes(
        plain=numbers * item, packed=(numbers - table + head) * item + table * stored
    )


def _cache(start: Start, config: ModelConfig, place: RankPlace, itemsize: int) -> CachePlan:
    heads = kv_share(config.kv_heads, place.rank, place.ranks).size
    limit = config.context_limit
    if start.max_context is not None:
        limit = min(limit, start.max_context)
    each = 2 * config.layers * heads * config.head_dim * itemsize
    return CachePlan(heads, each, limit, start.kv_cache_bytes)


def _limits(
    start: Start, config: ModelConfig, place: RankPlace, wanted: Mapping[str, Parameter]
) -> SchedulerLimits:
    step = max(start.max_step_tokens or STEP_TOKENS[place.kind], start.max_running)
    chunk = max(CHUNK_TOKENS[place.kind], start.max_running)
    # Multiplications that a token takes: over the weights, and for each token of its context.
    weights = sum(each.elements for name, each in wanted.items() if name.startswith("layers."))
    heads = even_share(config.heads, place.rank, place.ranks).size
    context = 2 * config.layers * heads * config.head_dim
    return SchedulerLimits(
        start.max_running,
        start.max_queued,
        step,
        min(chunk, step),
        context_weight=context / weights,
    )
