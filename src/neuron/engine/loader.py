"""From a Start message to a ready engine: check, read, size the cache, warm up.

Owns the order of a load. What needs neither device nor ranks is decided by ``load_plan.py``; the
work is done by the modules that this one calls. Nothing is read before the headers say that it
fits.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from neuron.engine.engine import Engine
from neuron.engine.forward import Forward
from neuron.engine.load_plan import LoadPlan, check_start, plan_load
from neuron.engine.machine import heap, memory
from neuron.engine.machine.device import default_threads, numerics, open_device, torch_dtype
from neuron.engine.machine.kernel_probe import KernelPath, choose_path
from neuron.engine.machine.row_padding import quickest_rows
from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.engine.ranks.rendezvous import follow, lead
from neuron.engine.runner import PoisonedLogits, Runner
from neuron.engine.scheduler import Chunk, StepPlan
from neuron.engine.sequence import Sequence
from neuron.ipc.messages import Loading, LoadStage, Ready, SamplingParams, Start
from neuron.layers.cache import KVCache
from neuron.layers.group import Group
from neuron.layers.linear import LinearPlan
from neuron.models.checkpoint import TensorEntry, canonical, read_checkpoint
from neuron.models.config import load_config
from neuron.models.decoder import Decoder
from neuron.models.errors import LoadCode, LoadError
from neuron.models.weights import load_weights, match_slots, wanted_bytes

PROGRESS_SECONDS = 0.25
"""Seconds between two reports of a part that is being read."""
WARM_UP_TOKENS = 32
"""Tokens of the prompt that warms up, unless the context is shorter."""

OnProgress = Callable[[Loading], None]


def load_engine(
    start: Start, on_progress: OnProgress, leader: RankBroadcast | None = None
) -> tuple[Engine, Ready]:
    """Loads the model that *start* names, as rank 0 of the ranks that *leader* leads. Raises
    :class:`LoadError`."""
    leader = leader or RankBroadcast()
    began = time.monotonic()
    with heap.tidy():
        tokenizer = load_tokenizer(Path(start.model_dir))
        plan, device = _prepare(start, on_progress, 0)
        forward, ready = execute(plan, lead(leader, device), device, on_progress)
        pool = BlockPool(ready.kv_cache_tokens // BLOCK_TOKENS)
        runner = Runner(forward, leader)
        _warm_up(runner, pool, ready.context_limit)
    engine = Engine(
        runner,
        tokenizer,
        pool,
        plan.limits,
        context_limit=ready.context_limit,
        vocab_size=ready.vocab_size,
    )
    return engine, msgspec.structs.replace(ready, load_seconds=time.monotonic() - began)


def load_follower(start: Start, on_progress: OnProgress, line: FollowerEnd, rank: int) -> Forward:
    """Loads what *rank*, another than 0, has of the model. Raises :class:`LoadError`."""
    with heap.tidy():
        plan, device = _prepare(start, on_progress, rank)
        return execute(plan, follow(line, rank, device), device, on_progress)[0]


def _prepare(start: Start, on_progress: OnProgress, rank: int) -> tuple[LoadPlan, torch.device]:
    """Reads the headers, opens the device and plans; other ranks are not heard yet."""
    check_start(start)
    on_progress(Loading(LoadStage.CHECKING, 0, 0))
    folder = Path(start.model_dir)
    config, entries = load_config(folder), read_checkpoint(folder)
    device = open_device(start.device)
    return plan_load(start, config, entries.values(), rank), device


def execute(
    plan: LoadPlan, group: Group, device: torch.device, on_progress: OnProgress
) -> tuple[Forward, Ready]:
    """Carries out *plan* on *device*; returns the rank's part, ready to compute, and what there is
    to say about the whole model.

    All ranks of *group* do the same, each by its own plan, and agree on the way; a group of one is
    the usual case. Raises :class:`LoadError`.
    """
    assert (group.rank, group.size) == (plan.place.rank, plan.place.ranks)
    path = _agree_on_kernels(plan, group, device)
    weight_bytes = plan.weights.resident(packed=path.is_packed)
    free = memory.free_bytes(device)
    memory.check_weights_fit(weight_bytes * plan.place.sharing, free, plan.place.device)
    group.least(0)  # nobody takes memory before everybody has looked

    model = _read_model(plan, path, group, device, on_progress)
    on_progress(Loading(LoadStage.WARMING, weight_bytes, weight_bytes))
    if device.type == "cpu" and not path.reference:
        dtype = torch_dtype(plan.dtypes.computed)
        model.pad_to(quickest_rows(model, path.linear.least_rows, dtype))
    group.least(0)  # nor more, before everybody has its weights
    free = memory.free_bytes(device)
    every_free = [int(word) for word in group.words("free", str(free))]
    uneven = memory.unevenness(plan.place.devices, every_free)
    cache, budget = _make_cache(plan, group, device, free)
    path = replace(path, notes=path.notes + uneven)
    return Forward(model, cache, path), _describe(plan, path, group, device, cache, budget)


def _agree_on_kernels(plan: LoadPlan, group: Group, device: torch.device) -> KernelPath:
    """Sets the threads, probes the kernels, and settles with the other ranks whether all of them
    are exact."""
    kernels = plan.kernels
    usual = default_threads(plan.weights.plain, ranks=group.size)
    torch.set_num_threads(kernels.threads or usual)
    path = choose_path(
        plan.config,
        list(kernels.linear_shapes),
        torch_dtype(plan.dtypes.computed),
        device,
        exact=kernels.exact,
        reference=kernels.reference,
    )
    if not group.least(path.exact):  # where one cannot be, none needs to be
        path = replace(path, exact=False)
    group.is_exact = path.exact
    return path


def _read_model(
    plan: LoadPlan, path: KernelPath, group: Group, device: torch.device, on_progress: OnProgress
) -> Decoder:
    """Builds the decoder, once the kernels say how it keeps its embedding, and fills it."""
    kept = plan.dtypes.stored if path.is_packed else plan.dtypes.computed
    dtype = torch_dtype(plan.dtypes.computed)
    model = Decoder(plan.config, dtype, torch_dtype(kept), device, group)
    fill_model(model, plan.tensors.values(), path.linear, on_progress)
    return model


def fill_model(
    model: Decoder,
    entries: Iterable[TensorEntry],
    plan: LinearPlan,
    on_progress: OnProgress = lambda _: None,
) -> None:
    """Reads the weights of *model* from *entries*, part by part. Raises :class:`LoadError`."""
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
    plan: LoadPlan, group: Group, device: torch.device, free: int
) -> tuple[KVCache, memory.KVBudget]:
    """Makes the KV cache as large as fits on every rank; *free* bytes are left on this one."""
    config, wish = plan.config, plan.cache
    budget = memory.kv_budget(
        free=free // plan.place.sharing,
        bytes_per_token=wish.bytes_per_token,
        context_limit=wish.context_limit,
        max_running=plan.limits.max_running,
        asked_bytes=wish.asked_bytes,
        share=memory.CUDA_SHARE if device.type == "cuda" else memory.CPU_SHARE,
    )
    blocks = group.least(budget.blocks)
    if blocks < budget.blocks:
        tokens = blocks * BLOCK_TOKENS
        why = f"{tokens} tokens: what fits on the rank with the least free memory"
        budget = memory.KVBudget(blocks, min(budget.context_limit, tokens), why)
    cache = KVCache(
        config.layers,
        blocks,
        wish.kv_heads,
        config.head_dim,
        dtype=torch_dtype(plan.dtypes.computed),
        device=device,
    )
    return cache, replace(budget, context_limit=group.least(budget.context_limit))


def _describe(
    plan: LoadPlan,
    path: KernelPath,
    group: Group,
    device: torch.device,
    cache: KVCache,
    budget: memory.KVBudget,
) -> Ready:
    """Says what was loaded, over all ranks; ``load_seconds`` is filled in at the end."""
    classes = group.words("numerics", numerics(device, cache.dtype, path.name))
    return Ready(
        architecture=plan.config.architecture,
        dtype=plan.dtypes.computed,
        context_limit=budget.context_limit,
        max_running=plan.limits.max_running,
        weight_bytes=group.total(plan.weights.resident(packed=path.is_packed)),
        kv_cache_bytes=group.total(cache.nbytes),
        kv_cache_tokens=cache.blocks * BLOCK_TOKENS,
        kv_cache_why=budget.why,
        vocab_size=plan.config.vocab_size,
        load_seconds=0.0,
        exact=path.exact,
        numerics=" + ".join(classes),
        notes=path.notes,
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
            LoadCode.CORRUPT, f"{path} cannot be read: {error}. Download the model again."
        ) from error


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
