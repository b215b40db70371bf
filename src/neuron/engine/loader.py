"""From a Start message to a ready engine: check, read, size the cache, warm up.

Owns the order of a load. What needs neither device nor ranks is decided by ``load_plan.py``; the
work is done by the modules that this one calls. Nothing is read before the headers say that it
fits.
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
from neuron.engine.load_plan import LoadPlan, check_start, plan_load
from neuron.engine.machine import heap, memory
from neuron.engine.machine.device import default_threads, numerics, open_device, torch_dtype
from neuron.engine.machine.findings import as_findings, as_path, findings_key
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
from neuron.models.weights import load_units, match_slots, wanted_bytes

PROGRESS_SECONDS = 0.25
"""Seconds between two reports of a part that is being read."""
WARM_UP_TOKENS = 32
"""Tokens of the prompt that warms up, unless the context is shorter."""
WARM_UP_TEXT = (
    'User: What is 17 + 25, and who was Ada Lovelace? Answer in JSON, like {"sum": 42}.\n\n'
    "Assistant: The sum is 42."
)

OnProgress = Callable[[Loading], None]


def load_engine(
    start: Start,
    on_progress: OnProgress,
    leader: RankBroadcast | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Engine, Ready]:
    """Loads the model that *start* names, as rank 0 of the ranks that *leader* leads. Its
    *tokenizer* may have been read before. Raises :class:`LoadError`."""
    leader = leader or RankBroadcast()
    stages = Stages()
    with heap.tidy():
        plan, device = _prepare(start, on_progress, 0)
        stages.over("headers")
        forward, ready = execute(plan, lead(leader, device), device, on_progress, stages)
        pool = BlockPool(ready.kv_cache_tokens // BLOCK_TOKENS)
        runner = Runner(forward, leader)
        # Not in a thread beside the rest: the library holds Python's lock while it parses.
        tokenizer = tokenizer or load_tokenizer(Path(start.model_dir))
        stages.over("tokenizer")
        tokens = _warm_up_tokens(tokenizer, ready.vocab_size)
        _warm_up(runner, pool, tokens[: ready.context_limit - 1], ready.dtype)
    stages.over("first steps")
    engine = Engine(
        runner,
        tokenizer,
        pool,
        plan.limits,
        context_limit=ready.context_limit,
        vocab_size=ready.vocab_size,
    )
    seconds = stages.seconds
    return engine, msgspec.structs.replace(
        ready, load_seconds=sum(seconds.values()), stage_seconds=seconds
    )


class Stages:
    """Notes how long each stage of a load takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def over(self, stage: str) -> None:
        """Notes that *stage* is over and the next one begins."""
        now = time.monotonic()
        self.seconds[stage] = now - self._began
        self._began = now


def load_follower(start: Start, on_progress: OnProgress, line: FollowerEnd, rank: int) -> Forward:
    """Loads what *rank*, another than 0, has of the model. Raises :class:`LoadError`."""
    with heap.tidy():
        plan, device = _prepare(start, on_progress, rank)
        return execute(plan, follow(line, rank, device), device, on_progress, Stages())[0]


def _prepare(start: Start, on_progress: OnProgress, rank: int) -> tuple[LoadPlan, torch.device]:
    """Reads the headers, opens the device and plans; other ranks are not heard yet."""
    check_start(start)
    on_progress(Loading(LoadStage.CHECKING, 0, 0))
    folder = Path(start.model_dir)
    config, entries = load_config(folder), read_checkpoint(folder)
    device = open_device(start.device)
    return plan_load(start, config, entries.values(), rank), device


def execute(
    plan: LoadPlan, group: Group, device: torch.device, on_progress: OnProgress, stages: Stages
) -> tuple[Forward, Ready]:
    """Carries out *plan* on *device*; returns the rank's part, ready to compute, and what there is
    to say about the whole model.

    All ranks of *group* do the same, each by its own plan, and agree on the way; a group of one is
    the usual case. Raises :class:`LoadError`.
    """
    assert (group.rank, group.size) == (plan.place.rank, plan.place.ranks)
    kernels = _try_kernels(plan, group, device)
    path = _agreed(kernels.path, group)
    weight_bytes = plan.weights.resident(packed=path.is_packed)
    free = memory.free_bytes(device)
    memory.check_weights_fit(weight_bytes * plan.place.sharing, free, plan.place.device)
    group.least(0)  # nobody takes memory before everybody has looked
    stages.over("kernels")

    model = _read_model(plan, path, group, device, on_progress)
    stages.over("weights")
    on_progress(Loading(LoadStage.WARMING, weight_bytes, weight_bytes))
    findings = {}
    if kernels.key:
        rows = kernels.padded_rows or _quickest_rows(model, plan, path)
        model.pad_to(rows)
        findings[kernels.key] = as_findings(kernels.path, rows)
    stages.over("padding")
    group.least(0)  # nor more, before everybody has its weights
    free = memory.free_bytes(device)
    every_free = [int(word) for word in group.words("free", str(free))]
    uneven = memory.unevenness(plan.place.devices, every_free)
    cache, budget = _make_cache(plan, group, device, free)
    stages.over("cache")
    path = replace(path, notes=path.notes + uneven)
    ready = _describe(plan, path, group, device, cache, budget)
    return Forward(model, cache, path), msgspec.structs.replace(ready, findings=findings)


class _Kernels(NamedTuple):
    """The kernels that work on this rank's device."""

    path: KernelPath
    key: str
    """By which later loads find them; empty where there is nothing to try."""
    padded_rows: int
    """To which rows are padded; 0 = this has to be measured."""


def _try_kernels(plan: LoadPlan, group: Group, device: torch.device) -> _Kernels:
    """Sets the threads, and probes the kernels where nothing is known of them."""
    kernels, dtype = plan.kernels, torch_dtype(plan.dtypes.computed)
    usual = default_threads(plan.weights.plain, ranks=group.size)
    torch.set_num_threads(kernels.threads or usual)
    shapes = list(kernels.linear_shapes)
    key = ""
    if device.type == "cpu" and not kernels.reference:
        key = findings_key(plan.config, shapes, dtype, device, exact=kernels.exact)
    if found := kernels.known.get(key):
        return _Kernels(as_path(found), key, found.padded_rows)
    path = choose_path(
        plan.config, shapes, dtype, device, exact=kernels.exact, reference=kernels.reference
    )
    return _Kernels(path, key, 0)


def _quickest_rows(model: Decoder, plan: LoadPlan, path: KernelPath) -> int:
    return quickest_rows(model, path.linear.least_rows, torch_dtype(plan.dtypes.computed))


def _agreed(path: KernelPath, group: Group) -> KernelPath:
    """Settles with the other ranks whether all of them are exact."""
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
    """Reads the weights of *model* from *entries*. Raises :class:`LoadError`."""
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
    load_units(model.units(plan), by_name, on_bytes)


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
    """Reads the folder's tokenizer.json, for decoding only. Raises :class:`LoadError` NOT_FOUND or
    CORRUPT."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise LoadError(
            LoadCode.NOT_FOUND, f"{path} is missing. Fetch it with the model's other files."
        )
    try:
        return Tokenizer.from_buffer(without_merges(path.read_bytes()))
    except Exception as error:  # the library raises nothing more specific
        raise LoadError(
            LoadCode.CORRUPT, f"{path} cannot be read: {error}. Download the model again."
        ) from error


def without_merges(content: bytes) -> bytes:
    """A tokenizer.json that decodes the same and is parsed in half the time: only encoding needs
    the merges of byte-pair encoding. What has another form is returned as it is."""
    try:
        parts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(parts["model"], type=dict[str, msgspec.Raw])
        if msgspec.json.decode(model["type"]) != "BPE":
            return content
    except (msgspec.DecodeError, KeyError):
        return content
    model["merges"] = msgspec.Raw(b"[]")
    parts["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(parts)


def _warm_up_tokens(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """A short text, as the model reads it: what overflows in a narrow dtype does so with the first
    words of a text, and not with any tokens."""
    ids: list[int] = tokenizer.encode(WARM_UP_TEXT).ids
    known = [token for token in ids if token < vocab_size]
    return (known or [0])[:WARM_UP_TOKENS]


def _warm_up(runner: Runner, pool: BlockPool, tokens: list[int], dtype: str) -> None:
    """Runs each kind of step once on *tokens*, so that the first request does not pay for it.

    Raises :class:`LoadError`: UNSUPPORTED when the model computes NaN or infinity in a narrow
    *dtype*, CORRUPT when it does so in float32.
    """
    count = len(tokens)
    sample = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9, prompt_logprobs=0)
    sequence = Sequence(0, sample, list(tokens), count, count + 2)
    while len(sequence.blocks) < blocks_for(count + 1):
        sequence.blocks.append(pool.allocate(sequence.blocks))
    try:
        sequence.tokens += [c.token for c in runner.run(StepPlan([Chunk(sequence, 0, count)]))]
        runner.run(StepPlan([Chunk(sequence, count, 1)]))
    except PoisonedLogits as error:
        if dtype == "float32":
            raise LoadError(
                LoadCode.CORRUPT, f"The model does not work: {error}. Fetch it again."
            ) from error
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"The model does not work in {dtype}: on a short text it computes NaN or infinity, "
            "because its numbers exceed that dtype's range, or its files are damaged. Set dtype = "
            '"float32" (or "bfloat16") in its profile, or fetch it again.',
        ) from error
    finally:
        runner.forget(sequence.id)
        pool.free(sequence.blocks)
