"""What sharing a model costs on a CPU: a sum over the ranks, telling them a step, and a step of one
rank and of two.

``python -m bench.tp``; a few minutes. The ranks of a CPU share its cores and the bandwidth of its
memory, so nothing gets faster here: the figures say what the parallel path itself takes.
"""

import argparse
import asyncio
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.engine_process.client import EngineProcess
from neuron.ipc.messages import Add, FromEngine, SamplingParams, Start, Step
from neuron.ipc.rank_commands import Compute, SequenceTokens
from neuron.tp_check import check
from tests.support.tiny_models import write_checkpoint

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32768,
}
TOKENS = 40
PROMPT = 512
ROUNDS = 3
LOADS = ((1, 16), (8, 16), (1, PROMPT))
"""Sequences, and the tokens of their prompts."""
TELLINGS = ((64, 4096), (64, 32768))
"""Sequences, and the tokens of their contexts."""
REPEATS = 50


async def steps(folder: Path, ranks: int, sequences: int, prompt: int) -> tuple[float, float]:
    """Median seconds of a decode step, and of a prompt's computation."""
    start = Start(str(folder), devices=("cpu",) * ranks if ranks > 1 else ())
    engine = await EngineProcess.start(start)
    seen: list[Step] = []
    handle = engine._handle

    def note(message: FromEngine) -> None:
        if isinstance(message, Step):
            seen.append(message)
        handle(message)

    engine._handle = note  # type: ignore[method-assign]
    prefill = []
    for round_ in range(ROUNDS):
        before = len(seen)
        numbers = range(round_ * sequences, (round_ + 1) * sequences)
        streams = [
            await engine.add(
                Add(number, [(number + 7 * i) % 250 for i in range(prompt)], SamplingParams(TOKENS))
            )
            for number in numbers
        ]
        await asyncio.gather(*(_drained(stream) for stream in streams))
        prefill.append(sum(s.seconds for s in seen[before:] if s.tokens > sequences))
    await engine.stop()
    decode = [s.seconds for s in seen if s.tokens == sequences]
    return statistics.median(decode), statistics.median(prefill)


async def _drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def table() -> None:
    """Prints the step times of one and of two ranks, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder), dtype=torch.float32, **SHAPE)
        print("| load | 1 rank | 2 ranks | ratio |\n|---|---|---|---|")
        for sequences, prompt in LOADS:
            found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for _ in range(ROUNDS):
                for ranks in found:
                    found[ranks].append(await steps(model, ranks, sequences, prompt))
            kind = 1 if prompt == PROMPT else 0
            one, two = (statistics.median(f[kind] for f in found[r]) for r in (1, 2))
            ratios = [b[kind] / a[kind] for a, b in zip(found[1], found[2], strict=True)]
            what = f"a prompt of {prompt}" if kind else f"decode, {sequences} sequences"
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            print(f"| {what} | {one * 1e3:.1f} ms | {two * 1e3:.1f} ms | {ratio} |")


def told(sequences: int, context: int, *, whole: bool) -> float:
    """Median seconds until another rank has read a decode step; *whole*: with all of the block
    tables, else with what is new of them."""
    ours, theirs = socket.socketpair()
    tables = [list(range(context // 16)) for _ in range(sequences)]
    seconds = []
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        leader, follower = RankBroadcast([ours]), FollowerEnd(theirs)
        for step in range(REPEATS):
            if whole:
                tables = [list(table) for table in tables]
            pieces = [SequenceTokens(i, [7], context - 1, table) for i, table in enumerate(tables)]
            read = pool.submit(follower.next)
            began = time.perf_counter()
            leader.tell(Compute(step, pieces))
            read.result()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def tellings() -> None:
    """Prints what it takes to tell a rank its step."""
    print("| step | whole block tables | what is new of them |\n|---|---|---|")
    for sequences, context in TELLINGS:
        all_of_it, news = (told(sequences, context, whole=whole) for whole in (True, False))
        what = f"{sequences} sequences of {context:,} tokens"
        print(f"| {what} | {all_of_it * 1e3:.2f} ms | {news * 1e3:.2f} ms |")


def main() -> None:
    """Prints all three tables."""
    argparse.ArgumentParser(prog="bench.tp", description=__doc__).parse_args()
    for ranks in (2, 4):
        print(f"\n{ranks} ranks:\n")
        check(("cpu",) * ranks, print)
    print()
    tellings()
    print()
    asyncio.run(table())


if __name__ == "__main__":
    main()
