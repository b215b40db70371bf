"""What the warm tier saves: loads from the disk beside loads of held pages.

``python -m bench.warm --folder DIR`` on the disk that is to be measured; DIR gets a checkpoint of
1.2 GB (Qwen3-0.6B's shape, random bfloat16 weights), once. Each round loads it in engine processes,
as the service does: *cold*, after the kernel was asked to drop its pages and mincore says that they
are gone, and *warm*, held by ``neuron.files.warm_tier``, although the kernel was asked just the
same. *raw* reads the bytes as the engine's readers do, and does nothing with them. *served* is the
load as the service asks for it here; *as stored* neither converts nor packs weights, so that a load
of it is reading, mostly, as it is on a GPU.
"""

import asyncio
import functools
import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from bench.engine.checkpoint import QWEN3_06B, make_checkpoint
from neuron.config import engine_environment
from neuron.engine_process.client import EngineProcess
from neuron.engine_process.launch import start_python
from neuron.files.warm_tier import WarmTier, check
from neuron.ipc.messages import Loading, LoadStage, Start
from neuron.models.weights import PIECE_BYTES, READERS
from tests.support.page_cache import cached_share, forget, locked_bytes

Times = dict[str, float]
MODES: dict[str, tuple[str, bool]] = {"served": ("auto", False), "as stored": ("bfloat16", True)}
"""The engine's dtype, and whether it computes plainly."""


def raw_seconds(path: Path) -> float:
    """Reads *path* by the engine's readers and pieces, into memory that is there already."""
    size = path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY)
    buffers = [bytearray(PIECE_BYTES) for _ in range(READERS)]

    def read(reader: int) -> None:
        for start in range(reader * PIECE_BYTES, size, READERS * PIECE_BYTES):
            os.preadv(descriptor, [buffers[reader]], start)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))
    os.close(descriptor)
    return time.perf_counter() - began


def direct_rate(path: Path) -> float:
    """Bytes a second past the page cache, one piece after the other."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pieces = path.stat().st_size // PIECE_BYTES
    with mmap.mmap(-1, PIECE_BYTES) as buffer:
        began = time.perf_counter()
        for piece in range(pieces):
            os.preadv(descriptor, [buffer], piece * PIECE_BYTES)
        seconds = time.perf_counter() - began
    os.close(descriptor)
    return pieces * PIECE_BYTES / seconds


async def load_times(folder: Path, mode: str) -> Times:
    """One load in a process of its own."""
    reached: dict[LoadStage, float] = {}

    def on_progress(loading: Loading) -> None:
        reached.setdefault(loading.stage, time.perf_counter())

    dtype, plain = MODES[mode]
    start = Start(
        str(folder), dtype=dtype, reference=plain, max_running=1, kv_cache_bytes=256 << 20
    )
    began = time.perf_counter()
    engine = await EngineProcess.start(
        start,
        on_progress=on_progress,
        launch=functools.partial(start_python, environment=engine_environment()),
    )
    ended = time.perf_counter()
    await engine.stop()
    return {
        f"{mode}: reading": reached[LoadStage.WARMING] - reached[LoadStage.READING],
        f"{mode}: load": engine.ready.load_seconds,
        f"{mode}: load and process": ended - began,
    }


async def all_times(folder: Path, share: float) -> Times:
    """Each kind once, with *share* of the weights in memory although they were to be dropped."""
    weights = folder / "model.safetensors"

    def dropped() -> None:
        forget(weights)
        assert cached_share(weights) == share, "the kernel did not do what it was asked for"

    dropped()
    times = {"raw": await asyncio.to_thread(raw_seconds, weights)}
    for mode in MODES:
        dropped()
        times |= await load_times(folder, mode)
    return times


async def held_times(folder: Path, tier: WarmTier) -> tuple[Times, float]:
    """With held pages; also the longest pause of the event loop while they were taken."""
    pauses = asyncio.create_task(_longest_pause())
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    why = await tier.keep("m", folder)
    keep = time.perf_counter() - began
    pauses.cancel()
    assert not why, why
    assert locked_bytes() == sum(tier.held.values()) <= tier.budget_bytes
    times = await all_times(folder, 1.0)
    tier.drop("m")
    return times | {"keep": keep}, await pauses


async def _longest_pause() -> float:
    """How much longer than a millisecond a sleep of one took, until cancelled."""
    longest = 0.0
    try:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - 0.001)
    except asyncio.CancelledError:
        return longest


async def measure(folder: Path, rounds: int) -> None:
    """Measures in turns and prints medians; the ratio is the median of the rounds' ratios."""
    make_checkpoint(folder, QWEN3_06B)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    budget = size + mmap.PAGESIZE
    check(budget)
    tier = WarmTier(budget)
    colds, warms, pauses, rates = [], [], [], []
    for number in range(1, rounds + 1):
        rates.append(direct_rate(weights))
        colds.append(await all_times(folder, 0.0))
        times, pause = await held_times(folder, tier)
        warms.append(times)
        pauses.append(pause)
        shown = (f"{kind} {colds[-1][kind]:.2f}/{times[kind]:.2f}" for kind in colds[-1])
        print(f"round {number}: {', '.join(shown)}; load average {os.getloadavg()[0]:.1f}")
    await tier.close()
    assert locked_bytes() == 0
    print(f"\n{size / 1e9:.2f} GB, {rounds} rounds\n")
    _print_table(colds, warms)
    keep = statistics.median(times["keep"] for times in warms)
    print(f"\nholding cached pages: {keep:.3f} s, longest pause of the loop {max(pauses):.3f} s")
    print(f"the disk past the page cache: {statistics.median(rates) / 1e9:.2f} GB/s")


def _print_table(colds: list[Times], warms: list[Times]) -> None:
    """The best is what a machine that others use too comes to when they do not."""
    print(
        "| seconds, and cold / warm | median cold | median warm | ratio | best cold | best warm |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in colds[0]:
        one, other = ([times[kind] for times in column] for column in (colds, warms))
        ratio = statistics.median(a / b for a, b in zip(one, other, strict=True))
        figures = (statistics.median(one), statistics.median(other), ratio, min(one), min(other))
        print(f"| {kind} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=5, show_default=True)
def main(folder: Path, rounds: int) -> None:
    """Prints the table."""
    asyncio.run(measure(folder, rounds))


if __name__ == "__main__":
    main()
