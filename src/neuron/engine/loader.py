"""From a Start message to a ready engine: check, read, size the cache, warm up.

Owns the order of a load and its choices of defaults; the work is done by the modules it calls.
Nothing is read before the headers say that it fits.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer

from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from neuron.engine.engine import Engine
from neuron.engine.forward import Forward
from neuron.engine.machine import heap, memory
from neuron.engine.machine.device import choose_dtype, default_threads, numerics, open_device
from neuron.engine.machine.kernel_probe import KernelPath, choose_path
from neuron.engine.machine.row_padding import quickest_rows
from neuron.engine.ranks.lines import FollowerEnd, RankBroadcast
from neuron.engine.ranks.rendezvous import follow, lead
from neuron.engine.runner import PoisonedLogits, Runner
from neuron.engine.scheduler import Chunk, SchedulerLimits, StepPlan
from neuron.engine.sequence import Sequence
from neuron.ipc.defaults import CHUNK_TOKENS, STEP_TOKENS
from neuron.ipc.messages import Loading, LoadStage, Ready, SamplingParams, Start
from neuron.layers.cache import KVCache
from neuron.layers.group import Group
from neuron.layers.linear import Kernel, LinearPlan
from neuron.models.checkpoint import (
    TensorEntry,
    canonical,
    most_common_dtype,
    read_checkpoint,
)
from neuron.models.config import ModelConfig, load_config
from neuron.models.decoder import Decoder
from neuron.models.errors import LoadCode, LoadError
from neuron.models.sharding import check_ranks
from neuron.models.weights import DTYPES, load_weights, match_slots, wanted_bytes

PROGRESS_SECONDS = 0.25
WARM_UP_TOKENS = 32

OnProgress = Callable[[Loading], None]


class _Loaded(NamedTuple):
    """A rank's part of a model, ready to compute."""

    forward: Forward
    ready: Ready
    """About the whole model."""


def load_engine(
    start: Start, on_progress: OnProgress, leader: RankBroadcast | None = None
) -> tuple[Engine, Ready]:
    """Loads the model that *start* names, as rank 0 of the ranks that *leader* leads. Raises
    :class:`LoadError`."""
    leader = leader or RankBroadcast()
    began = time.monotonic()
    with heap.tidy():
        tokenizer = load_tokenizer(Path(start.model_dir))
        forward, ready = _load_rank(start, on_progress, lambda device: lead(leader, device))
        pool = BlockPool(ready.kv_cache_tokens // BLOCK_TOKENS)
        runner = Runner(forward, leader)
        _warm_up(runner, pool, ready.context_limit)
    engine = Engine(
        runner,
        tokenizer,
        pool,
        _limits(start, forward.model),
        context_limit=ready.context_limit,
        vocab_size=ready.vocab_size,
    )
    return engine, msgspec.structs.replace(ready, load_seconds=time.monotonic() - began)


def load_follower(start: Start, on_progress: OnProgress, line: FollowerEnd, rank: int) -> Forward:
    """Loads what another rank has of the model. Raises :class:`LoadError`."""
    with heap.tidy():
        return _load_rank(start, on_progress, lambda device: follow(line, rank, device)).forward


def _load_rank(
    start: Start, on_progress: OnProgress, join: Callable[[torch.device], Group]
) -> _Loaded:
    """All ranks do the same, and agree on the way; a group of one is the usual case."""
    _check_start(start)
    on_progress(Loading(LoadStage.CHECKING, 0, 0))
    folder = Path(start.model_dir)
    config = load_config(folder)
    entries = read_checkpoint(folder)
    device = open_device(start.device)
    stored = config.dtype or most_common_dtype(entries.values())
    dtype = choose_dtype(start.dtype, stored, device)
    check_ranks(config, len(start.devices) or 1)
    group = join(device)
    model, path = _plan_model(start, config, entries.values(), dtype, device, group)
    weight_bytes = model.resident_bytes(path.linear)
    sharing = group.size if device.type == "cpu" else 1  # ranks with one memory
    memory.check_weights_fit(weight_bytes * sharing, memory.free_bytes(device), start.device)
    group.least(0)  # nobody takes memory before everybody has looked

    fill_model(model, entries.values(), path.linear, on_progress)
    on_progress(Loading(LoadStage.WARMING, weight_bytes, weight_bytes))
    if device.type == "cpu" and not path.reference:
        model.pad_to(quickest_rows(model, path.linear.least_rows, dtype))
    group.least(0)  # nor more, before everybody has its weights
    free = memory.free_bytes(device)
    uneven = memory.unevenness(start.devices, list(map(int, group.words("free", str(free)))))
    cache, budget = _make_cache(start, model, dtype, group, free)
    classes = group.words("numerics", numerics(device, dtype, path.name))
    ready = Ready(
        architecture=config.architecture,
        dtype=str(dtype).removeprefix("torch."),
        context_limit=budget.context_limit,
        max_running=start.max_running,
        weight_bytes=group.total(weight_bytes),
        kv_cache_bytes=group.total(cache.nbytes),
        kv_cache_tokens=cache.blocks * BLOCK_TOKENS,
        kv_cache_why=budget.why,
        vocab_size=config.vocab_size,
        load_seconds=0.0,
        exact=path.exact,
        numerics=" + ".join(classes),
        notes=path.notes + uneven,
    )
    return _Loaded(Forward(model, cache, path), ready)


def _check_start(start: Start) -> None:
    """Settings that no model can be served with are refused by name."""
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json; LoadError NOT_FOUND or CORRUPT."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise LoadError(
            LoadCode.NOT_FOUND, f"{path} is missing. Fetch it with the model's other files."
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise LoadError(
            LoadCode.CORRUPT, f"{path} cannot be read: {error}. Fetch the model again."
        ) from error


def _plan_model(
    start: Start,
    config: ModelConfig,
    entries: Iterable[TensorEntry],
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
) -> tuple[Decoder, KernelPath]:
    """The model without memory, and the kernels for it; checks that the weights belong to it."""
    model = Decoder(config, dtype, dtype, device, group)
    match_slots(entries, model.slots(), model.ignores)
    usual = default_threads(model.resident_bytes(LinearPlan()), ranks=group.size)
    asked = max(1, start.threads // group.size) if start.threads else 0
    torch.set_num_threads(asked or usual)
    path = choose_path(
        config, model.linears, dtype, device, exact=start.exact, reference=start.reference
    )
    if not group.least(path.exact):  # where one cannot be, none needs to be
        path = replace(path, exact=False)
    group.is_exact = path.exact
    if path.linear.kernel is Kernel.PACKED:
        # The head is kept in another layout anyway, so the embedding can stay as it is stored.
        stored = DTYPES[most_common_dtype(entries)]
        model = Decoder(config, dtype, stored, device, group)
    return model, path


def fill_model(
    model: Decoder,
    entries: Iterable[TensorEntry],
    plan: LinearPlan,
    on_progress: OnProgress = lambda _: None,
) -> None:
    """Reads the weights of *model*, part by part. Raises :class:`LoadError`."""
    pairs = match_slots(entries, model.slots(), model.ignores)
    by_name = {canonical(entry.name): entry for entry, _ in pairs}
    total, done = sum(wanted_bytes(entry, slot) for entry, slot in pairs), 0
    reported = time.monotonic()

    def on_bytes(count: int) -> None:
        nonlocal done, reported
        done += count
        if done == total or time.monotonic() - reported >= PROGRESS_SECONDS:
            reported = time.monotonic()
            on_progress(Loading(LoadStage.READING, done, total))

    on_progress(Loading(LoadStage.READING, 0, total))
    for part in model.parts():
        model.place(part)
        load_weights([(by_name[name], slot) for name, slot in part.slots().items()], on_bytes)
        model.finish(part, plan)


def _make_cache(
    start: Start, model: Decoder, dtype: torch.dtype, group: Group, free: int
) -> tuple[KVCache, memory.KVBudget]:
    """As large as fits on every rank."""
    config, device = model.config, model.device
    limit = config.context_limit
    if start.max_context is not None:
        limit = min(limit, start.max_context)
    budget = memory.kv_budget(
        free=free // (group.size if device.type == "cpu" else 1),
        bytes_per_token=model.kv_bytes_per_token(dtype.itemsize),
        context_limit=limit,
        max_running=start.max_running,
        asked_bytes=start.kv_cache_bytes,
        share=memory.CUDA_SHARE if device.type == "cuda" else memory.CPU_SHARE,
    )
    blocks = group.least(budget.blocks)
    if blocks < budget.blocks:
        tokens = blocks * BLOCK_TOKENS
        why = f"{tokens} tokens: what fits on the rank with the least free memory"
        budget = memory.KVBudget(blocks, min(budget.context_limit, tokens), why)
    cache = KVCache(
        config.layers, blocks, model.kv_heads, config.head_dim, dtype=dtype, device=device
    )
    return cache, replace(budget, context_limit=group.least(budget.context_limit))


def _limits(start: Start, model: Decoder) -> SchedulerLimits:
    kind, config = model.device.type, model.config
    step = max(start.max_step_tokens or STEP_TOKENS[kind], start.max_running)
    chunk = max(CHUNK_TOKENS[kind], start.max_running)
    # Multiplications that a token takes: over the weights, and for each token of its context.
    weights = sum(parameter.numel() for parameter in model.layers.parameters())
    context = 2 * config.layers * model.heads * config.head_dim
    return SchedulerLimits(
        start.max_running,
        start.max_queued,
        step,
        min(chunk, step),
        context_weight=context / weights,
    )


def _warm_up(runner: Runner, pool: BlockPool, context_limit: int) -> None:
    """Runs each kind of step once, so that the first request does not pay for it.

    Raises :class:`LoadError` CORRUPT when the weights compute NaN or infinity.
    """
    count = min(WARM_UP_TOKENS, context_limit - 1)
    sample = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9)
    sequence = Sequence(0, sample, [0] * count, count, count + 2)
    while len(sequence.blocks) < blocks_for(count + 1):
        sequence.blocks.append(pool.allocate(sequence.blocks))
    try:
        sequence.tokens += [c.token for c in runner.run(StepPlan([Chunk(sequence, 0, count)]))]
        runner.run(StepPlan([Chunk(sequence, count, 1)]))
    except PoisonedLogits as error:
        raise LoadError(
            LoadCode.CORRUPT,
            f"The model does not work: {error}. Fetch it again, or choose dtype float32.",
        ) from error
    finally:
        pool.free(sequence.blocks)
