"""From a Start message to a ready engine: check, read, size the cache, warm up.

Owns the order of a load and its choices of defaults; the work is done by the modules it calls.
Nothing is read before the headers say that it fits.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from neuron.engine import memory
from neuron.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from neuron.engine.device import choose_dtype, default_threads, numerics, open_device
from neuron.engine.engine import Engine
from neuron.engine.messages import Loading, LoadStage, Ready, Sample, Start
from neuron.engine.runner import PoisonedLogits, Runner
from neuron.engine.scheduler import Chunk, Limits, Plan
from neuron.engine.sequence import Sequence
from neuron.layers.attention import KVCache
from neuron.models.checkpoint import TensorEntry, read_checkpoint
from neuron.models.config import ModelConfig, load_config
from neuron.models.errors import LoadCode, LoadError
from neuron.models.qwen3 import Qwen3
from neuron.models.registry import model_class
from neuron.models.weights import load_weights, match_slots

STEP_TOKENS = {"cpu": 256, "cuda": 4096}
CHUNK_TOKENS = {"cpu": 64, "cuda": 1024}
"""Prefill beside running streams: about what doubles the time of a decode step."""
PROGRESS_SECONDS = 0.25
WARM_UP_TOKENS = 32

OnProgress = Callable[[Loading], None]


def load_engine(start: Start, on_progress: OnProgress) -> tuple[Engine, Ready]:
    """Loads the model that *start* names. Raises :class:`LoadError`."""
    began = time.monotonic()
    _check_start(start)
    on_progress(Loading(LoadStage.CHECKING, 0, 0))
    folder = Path(start.model_dir)
    config = load_config(folder)
    entries = read_checkpoint(folder)
    tokenizer = load_tokenizer(folder)
    device = open_device(start.device)
    dtype = choose_dtype(start.dtype, config.dtype or _most_common(entries.values()), device)
    with torch.device("meta"):
        expected = _build(config, dtype)
    pairs = match_slots(entries.values(), expected.slots(), expected.ignores)
    weight_bytes = sum(slot.nbytes for _, slot in pairs)
    torch.set_num_threads(start.threads or default_threads(weight_bytes))
    memory.check_weights_fit(weight_bytes, memory.free_bytes(device), start.device)

    model = build_model(config, entries, dtype, device, on_progress)
    on_progress(Loading(LoadStage.WARMING, weight_bytes, weight_bytes))
    cache, context_limit = _make_cache(start, config, dtype, device)
    pool = BlockPool(cache.blocks)
    runner = Runner(model, cache, device)
    _warm_up(runner, pool, context_limit)
    engine = Engine(
        runner,
        tokenizer,
        pool,
        _limits(start, device),
        context_limit=context_limit,
        vocab_size=config.vocab_size,
    )
    ready = Ready(
        architecture=config.architecture,
        dtype=str(dtype).removeprefix("torch."),
        context_limit=context_limit,
        max_running=start.max_running,
        weight_bytes=weight_bytes,
        kv_cache_bytes=cache.nbytes,
        kv_cache_tokens=cache.blocks * BLOCK_TOKENS,
        vocab_size=config.vocab_size,
        load_seconds=time.monotonic() - began,
        numerics=numerics(device, dtype),
    )
    return engine, ready


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


def _build(config: ModelConfig, dtype: torch.dtype) -> Qwen3:
    """The model with uninitialised parameters, on the device of the surrounding context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return model_class(config.architecture)(config).eval()
    finally:
        torch.set_default_dtype(before)


def build_model(
    config: ModelConfig,
    entries: dict[str, TensorEntry],
    dtype: torch.dtype,
    device: torch.device,
    on_progress: OnProgress = lambda _: None,
) -> Qwen3:
    """Builds the model on *device* and reads its weights. Raises :class:`LoadError`."""
    with device:
        model = _build(config, dtype)
    pairs = match_slots(entries.values(), model.slots(), model.ignores)
    total = sum(entry.nbytes for entry, _ in pairs)
    reported = time.monotonic()

    def on_bytes(done: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported >= PROGRESS_SECONDS:
            reported = time.monotonic()
            on_progress(Loading(LoadStage.READING, done, total))

    load_weights(pairs, on_bytes)
    model.finish()
    return model


def _make_cache(
    start: Start, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> tuple[KVCache, int]:
    limit = config.context_limit
    if start.max_context is not None:
        limit = min(limit, start.max_context)
    budget = memory.kv_budget(
        free=memory.free_bytes(device),
        bytes_per_token=config.kv_bytes_per_token(dtype.itemsize),
        context_limit=limit,
        max_running=start.max_running,
        asked_bytes=start.kv_cache_bytes,
        share=memory.CUDA_SHARE if device.type == "cuda" else memory.CPU_SHARE,
    )
    cache = KVCache(
        config.layers,
        budget.blocks,
        config.kv_heads,
        config.head_dim,
        dtype=dtype,
        device=device,
    )
    return cache, budget.context_limit


def _limits(start: Start, device: torch.device) -> Limits:
    step = max(start.max_step_tokens or STEP_TOKENS[device.type], start.max_running)
    chunk = max(CHUNK_TOKENS[device.type], start.max_running)
    return Limits(start.max_running, start.max_queued, step, min(chunk, step))


def _warm_up(runner: Runner, pool: BlockPool, context_limit: int) -> None:
    """Runs each kind of step once, so that the first request does not pay for it.

    Raises :class:`LoadError` CORRUPT when the weights compute NaN or infinity.
    """
    count = min(WARM_UP_TOKENS, context_limit - 1)
    sample = Sample(max_tokens=2, temperature=1.0, top_p=0.9)
    sequence = Sequence(0, sample, [0] * count, count, count + 2)
    sequence.blocks = pool.take(blocks_for(count + 1))
    sequence.first_block = sequence.blocks[0]
    try:
        sequence.tokens += runner.run(Plan([Chunk(sequence, 0, count)]))
        runner.run(Plan([Chunk(sequence, count, 1)]))
    except PoisonedLogits as error:
        raise LoadError(
            LoadCode.CORRUPT,
            f"The model does not work: {error}. Fetch it again, or choose dtype float32.",
        ) from error
    finally:
        pool.give_back(sequence.blocks)


def _most_common(entries: Iterable[TensorEntry]) -> str:
    """The stored dtype that holds most bytes."""
    totals: dict[str, int] = {}
    for entry in entries:
        totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.nbytes
    return max(totals, key=totals.__getitem__, default="F32")
